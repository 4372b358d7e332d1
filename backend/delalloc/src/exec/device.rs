//! The device: completes one outstanding request a step.

use super::Engine;
use crate::geometry::{bit, each};
use crate::program::Instr;
use crate::state::{ANY, Errno, STALE, State, Wait};

/// Choice bit of the device: the request is a data write of writeback, not of a thread.
pub const DEVICE_IO: u8 = 16;
/// Choice bit of the device: the request fails.
pub const DEVICE_FAILS: u8 = 32;

impl Engine {
    /// Whether a thread that waits for metadata goes on where a failure is looked for: lookups and
    /// allocation do, removal does not.
    #[inline]
    pub(super) fn read_can_fail(&self, slot: usize, pc: u16) -> bool {
        matches!(self.programs[slot].get(usize::from(pc) + 1), Some(Instr::IfErr(_)))
    }

    pub(super) fn complete(&self, state: &mut State, choice: u8) {
        let failed = choice & DEVICE_FAILS != 0;
        let index = usize::from(choice & 15);
        if failed {
            state.fs.faults -= 1;
        }
        if choice & DEVICE_IO != 0 {
            self.io_done(state, index, failed);
            return;
        }
        let t = state.threads[index];
        match t.wait {
            Wait::Bitmap | Wait::Leaf | Wait::Data | Wait::DirectRead if failed => {
                state.threads[index].errno = Errno::Eio;
                if t.wait != Wait::DirectRead {
                    // Not what takes the answer.
                    state.threads[index].pc += 1;
                }
            }
            Wait::None | Wait::Data | Wait::Log => {}
            Wait::Bitmap => state.fs.bitmap = true,
            Wait::Leaf => state.disk.leaves |= bit(self.geo.leaf(t.cur)),
            Wait::DirectWrite => {
                for b in each(t.aside) {
                    let content = state.want.get(b);
                    let pblk = state.disk.pblk[usize::from(b)];
                    if failed {
                        state.want.set(b, ANY);
                    } else if pblk != 0 {
                        state.disk.set_media(pblk, content);
                    }
                }
                if failed {
                    state.threads[index].errno = Errno::Eio;
                }
            }
            Wait::DirectRead => {
                for (n, block) in (t.map.lblk..t.map.end).enumerate() {
                    if state.disk.media(t.map.pblk + n as u8) == STALE {
                        state.expose(block, t.map.pblk + n as u8);
                    }
                }
            }
        }
        state.threads[index].wait = Wait::None;
        self.settle(state, index);
    }
}
