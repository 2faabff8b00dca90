"""The gateway: takes charge requests over HTTP, and tells what became of them."""
