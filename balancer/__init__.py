"""The balancer: keeps a live load table and sends each request to a substation's queue."""
