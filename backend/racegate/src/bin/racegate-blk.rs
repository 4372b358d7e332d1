//! The vhost-user-blk daemon; see [`racegate::blk`].

fn main() -> std::process::ExitCode {
    racegate::blk::main(std::env::args_os())
}
