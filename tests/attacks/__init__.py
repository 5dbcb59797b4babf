"""What somebody may try, and the refusal: one sentence a test. docs/threat-model.md names each."""
