//! The commands, one file each.

pub(crate) mod bench;
pub(crate) mod certs;
pub(crate) mod channel;
pub(crate) mod completions;
pub(crate) mod config;
pub(crate) mod demo;
pub(crate) mod forecast;
pub(crate) mod guest;
pub(crate) mod guest_process;
pub(crate) mod man;
pub(crate) mod migrate;
pub(crate) mod migration;
pub(crate) mod migrator;
pub(crate) mod probe;
pub(crate) mod relay;
pub(crate) mod shape;
pub(crate) mod status;
pub(crate) mod tunnel;

use crate::args::Command;
use crate::failure::Failure;

/// Runs a command.
pub(crate) fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Demo(options) => demo::run(&options),
        Command::Status(options) => status::run(&options),
        Command::Forecast(options) => forecast::run(&options),
        Command::Guest(command) => guest::run(command),
        Command::Migrate(options) => migrate::run(&options),
        Command::Migration(command) => migration::run(command),
        Command::Certs(command) => certs::run(command),
        Command::Channel(command) => channel::run(command),
        Command::Tunnel(command) => tunnel::run(command),
        Command::Migrator(command) => migrator::run(command),
        Command::Config(command) => config::run(command),
        Command::Completions(options) => completions::run(&options),
        Command::Man(options) => man::run(&options),
        Command::GuestProcess(options) => guest_process::run(options),
        Command::Relay(options) => relay::run(&options),
    }
}
