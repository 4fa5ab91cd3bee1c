//! The system from outside: real processes, real HTTP. What a test needs of a participant beyond
//! answers it takes from `support::stub`.

#[cfg(test)]
mod api;
#[cfg(test)]
mod arrows;
#[cfg(test)]
mod demo;
#[cfg(test)]
mod kills;
#[cfg(test)]
mod logs;
#[cfg(test)]
mod pages;
#[cfg(test)]
mod process;
#[cfg(test)]
mod standing;
#[cfg(test)]
mod support;
#[cfg(test)]
mod traces;
#[cfg(test)]
mod trouble;
