"""The engines: each tells how its child process is started, when it is ready and how it answers."""
