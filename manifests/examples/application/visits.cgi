#!/bin/sh
# Counts a visit in the cache and in the database, both found by name, and says what each says.
PATH=/usr/bin:/usr/lib/postgresql/15/bin
visits=$(redis-cli -h cache incr visits)
rows=$(psql -h database -U postgres -d postgres -qtA -c 'create table if not exists visits (at timestamptz default now())' \
  -c 'insert into visits default values' -c 'select count(*) from visits' 2>/dev/null)
printf 'Content-Type: text/plain\r\n\r\n'
echo "cache says ${visits:-nothing}, database says ${rows:-nothing}"
