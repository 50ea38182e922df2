//! `starling-chaos`: simulates clusters in which everything fails, and judges what they did.
//!
//! It ends with 0 if every promise was kept, 1 if one was broken, 2 if it was asked for nonsense.

mod allocator;
mod commands;
mod tripwire;

use std::process::ExitCode;

use clap::Parser;

#[global_allocator]
static ALLOCATOR: allocator::ThreadCache = allocator::ThreadCache;

fn main() -> ExitCode {
    commands::Arguments::parse().run()
}
