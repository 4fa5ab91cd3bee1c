//! The demo that `make demo` shows, with the programs of this build.
