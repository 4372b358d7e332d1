//! The end of the guest: power off, also after a panic of the agent.
//!
//! In: nothing. Out: no return.

use std::panic;
use std::sync::{Arc, OnceLock};

use agent::wire::ToHost;
use rustix::system::{RebootCommand, reboot};

use crate::{console, link::Link};

static LINK: OnceLock<Arc<Link>> = OnceLock::new();

/// From now on a panic is also told over the link.
pub(crate) fn report_panics_to(link: Arc<Link>) {
    LINK.get_or_init(|| link);
}

/// Makes a panic of any thread end the guest, after it was reported.
pub(crate) fn off_on_panic() {
    panic::set_hook(Box::new(|info| {
        let text = info.to_string();
        console::say(&format!("panic: {text}"));
        if let Some(link) = LINK.get() {
            link.try_send(&ToHost::Panic { text });
        }
        off();
    }));
}

/// Powers the machine off.
pub(crate) fn off() -> ! {
    rustix::fs::sync();
    let refused = reboot(RebootCommand::PowerOff);
    console::say(&format!("power off refused: {refused:?}"));
    // Init must not return: its end is a kernel panic, which the host reports as what it is.
    std::process::exit(1)
}
