//! The page server; see [`racegate::pmem`].

fn main() -> std::process::ExitCode {
    racegate::pmem::main(std::env::args_os())
}
