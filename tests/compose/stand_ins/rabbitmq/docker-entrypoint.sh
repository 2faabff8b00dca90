#!/bin/sh
# As upstream's: root hands the data over to the broker's own user, and whatever is run becomes that user.
set -e
if [ "$(id -u)" = 0 ]; then
  chown rabbitmq:rabbitmq /var/lib/rabbitmq
  exec setpriv --reuid=rabbitmq --regid=rabbitmq --init-groups "$0" "$@"
fi
exec "$@"
