"""Alembic's entry point: runs the migrations on the connection that `labelling.database` gives."""

from alembic import context

from tastemaker.labelling.tables import Base

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=True, transactional_ddl=True)
context.run_migrations()
