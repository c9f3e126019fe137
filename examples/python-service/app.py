"""A small web service: bottle for the routes, waitress for the sockets."""

import os
import platform

import bottle
import waitress

app = bottle.Bottle()


@app.get("/")
def index():
    return {"service": "python", "version": platform.python_version()}


if __name__ == "__main__":
    port = int(os.environ["PORT"])
    print(f"python-service listens on {port}")
    waitress.serve(app, host="0.0.0.0", port=port)
