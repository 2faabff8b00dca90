"""The local stack: a private RabbitMQ and all services on one machine, supervised, gone without a trace."""
