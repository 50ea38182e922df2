//! One core with a real storage engine on a simulated disk; its peers are played by the tests.

mod codes;
mod coordination;
mod peers;
mod rig;
