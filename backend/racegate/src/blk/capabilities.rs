//! `--print-capabilities`: what a management program may rely on.
//!
//! In: nothing. Out: `VHostUserBackendCapabilitiesBlock` of QEMU's docs/interop/vhost-user.json.

/// One line of JSON.
pub(super) fn json() -> String {
    serde_json::json!({ "type": "block", "features": ["blk-file", "read-only"] }).to_string()
}
