//! What the operator says of the guest's data mode, for the shadow.

use clap::ValueEnum;
use pipeline::shadow::Options;

/// The guest's mount option `data=`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum DataMode {
    /// `data=ordered` or `data=journal`
    Ordered,
    /// `data=writeback`
    Writeback,
}

impl DataMode {
    /// What the shadow may expect of it.
    pub(crate) fn options(self) -> Options {
        Options { ordered: self == DataMode::Ordered }
    }
}
