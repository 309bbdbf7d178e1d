"""A Hub on loopback: the HTTP routes that the Hugging Face clients use, for the tests.

``python -m tests.hub.server --root DIR`` runs it by hand. In a test, with the `hub` fixture::

    hub.create_repo("org/model")
    sha = hub.add_files("org/model", {"config.json": "{}", "model.safetensors": Path(...)})
    with hub.faults({"action": "status", "status": 503, "times": 2}), hub.recording() as exchanges:
        subprocess.run(["rnp-hub", ...], env=hub.env(token=hub.token))
    assert hub.head("me/model-rnp") == ...
    assert sum(exchange["bytes_out"] for exchange in exchanges) < ...

Kinds of faults are in :mod:`tests.hub.faults`, the rest is on :class:`tests.hub.client.Hub`.
"""
