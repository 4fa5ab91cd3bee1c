//! What `unanimous-protocol` owes its users, from outside: the wire's examples, and each rule of the protocol that the
//! machines carry as a test that breaks when the rule is broken. Test names are claims.

#[cfg(test)]
mod branch;
#[cfg(test)]
mod coordinator;
#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod golden;
#[cfg(test)]
mod replies;
#[cfg(test)]
mod rig;
#[cfg(test)]
mod schedules;
#[cfg(test)]
mod tables;
