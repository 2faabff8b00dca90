"""The message broker: the only package that imports aio-pika."""
