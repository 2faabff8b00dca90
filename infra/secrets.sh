#!/bin/sh
# Writes passwords drawn at random, and what is made of them, into the folder `secrets` for infra/compose.secrets.yml.
# It needs the image that `docker compose build gateway` makes. To begin anew, remove the folder.
set -eu
umask 022
cd "$(dirname "$0")/.."
image=evenload:${IMAGE_TAG:-0.1.0}

[ ! -e secrets ] || { echo "secrets: there is one already; remove it to draw new passwords" >&2; exit 2; }
docker image inspect "$image" > /dev/null 2>&1 || { echo "$image is missing: docker compose build gateway" >&2; exit 2; }

# Only its owner enters the folder; the files in it are read by the containers' own users.
mkdir -m 0700 secrets.new
trap 'rm -rf secrets.new' EXIT

draw() { od -An -N16 -tx1 /dev/urandom | tr -d ' \n'; }
keep() { printf '%s\n' "$2" > "secrets.new/$1"; }

roles=
for role in gateway balancer substation; do
  password=$(draw)
  roles="$roles $role=$password"
  keep "${role}_amqp_url" "amqp://$role:$password@rabbitmq:5672/evenload"
  keep "${role}_ledger_url" "postgresql://evenload_$role:$password@postgres:5432/evenload"
done
for name in operator_password monitor_password postgres_owner_password grafana_admin_password; do
  keep "$name" "$(draw)"
done

make() { docker run --rm --network none "$image" python -m "$@"; }
# Unquoted: one word for each role.
make services.ledger.provision $roles > secrets.new/provision.sql
echo "ALTER ROLE evenload PASSWORD '$(cat secrets.new/postgres_owner_password)';" >> secrets.new/provision.sql
make services.broker.topology $roles operator="$(cat secrets.new/operator_password)" \
  monitor="$(cat secrets.new/monitor_password)" > secrets.new/definitions.json

mv secrets.new secrets
trap - EXIT
echo "secrets: written; the console's logins are in secrets/operator_password and secrets/monitor_password"
