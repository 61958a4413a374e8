"""What HTTP servers need to be safe, whatever they serve: hosts, secrets, body limits, headers. Free of torch."""
