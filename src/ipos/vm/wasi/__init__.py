"""The host's side of the WASI that runs inside wasm: what goes in at boot (`boot`), what comes out (`output`)."""
