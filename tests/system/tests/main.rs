//! The system from outside: real processes, real HTTP. What a test needs of a participant beyond
//! answers it takes from `support::stub`.

#[cfg(test)]
mod adoption;
#[cfg(test)]
mod api;
#[cfg(test)]
mod arrows;
#[cfg(test)]
mod audit;
#[cfg(test)]
mod bench;
#[cfg(test)]
mod crash;
#[cfg(test)]
mod demo;
#[cfg(test)]
mod kills;
#[cfg(test)]
mod kit;
#[cfg(test)]
mod logs;
#[cfg(test)]
mod outage;
#[cfg(test)]
mod pages;
#[cfg(test)]
mod process;
#[cfg(test)]
mod standing;
#[cfg(test)]
mod start;
#[cfg(test)]
mod support;
#[cfg(test)]
mod takeover;
#[cfg(test)]
mod tls;
#[cfg(test)]
mod traces;
#[cfg(test)]
mod trouble;
