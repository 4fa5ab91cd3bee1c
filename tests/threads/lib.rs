//! Only tests: see `tests/main.rs`.
