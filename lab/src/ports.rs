//! Ports for servers that must come back on the same one after they were killed.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, bail};

// Below the range from which Linux takes the local ports of outgoing connections (32768 and up):
// from there somebody's connection could take the port of a server while it is dead.
const FIRST: u32 = 15_000;
const COUNT: u32 = 17_000;

/// Each process begins to look this far from the next process id's place. Tests are processes that
/// run side by side, and a port is free until its server is up: they should not look at the same.
const PER_PROCESS: u32 = 32;

static TRIED: AtomicU32 = AtomicU32::new(0);

/// A port of 127.0.0.1 that nobody listens on now and that this process has not been given before.
/// Another one may still take it first: who starts a server on it tries another one then.
pub fn free() -> anyhow::Result<u16> {
    let begin = std::process::id().wrapping_mul(PER_PROCESS);
    for _ in 0..COUNT {
        let tried = TRIED.fetch_add(1, Ordering::Relaxed);
        let port = FIRST + begin.wrapping_add(tried) % COUNT;
        let port = u16::try_from(port).context("the range of ports ends below 65536")?;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no free port between {FIRST} and {}", FIRST + COUNT)
}
