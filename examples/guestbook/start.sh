#!/bin/sh
# Runs the worker beside the web server; when either ends, so does the container.
set -e
node /app/worker.js &
worker=$!
python3 /app/app.py &
web=$!
trap 'kill $worker $web 2>/dev/null' TERM INT
while kill -0 $worker 2>/dev/null && kill -0 $web 2>/dev/null; do
	sleep 1 &
	wait $! || true
done
kill $worker $web 2>/dev/null || true
wait
