"""Work spread over processes, machines and hosts."""
