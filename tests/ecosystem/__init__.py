"""Other packages' own tests, without this extension and with it: see scripts/ecosystem."""
