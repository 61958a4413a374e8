/** Logs in with the token that the address has after `#`, which browsers send to no server. */
const token = new URLSearchParams(location.hash.slice(1)).get("token");
if (token) {
  history.replaceState(null, "", location.pathname);
  document.getElementById("by-token").open = true;
  document.getElementById("token").value = token;
  document.getElementById("token-form").submit();
}
