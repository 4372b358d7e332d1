//! A terminal that is redrawn, and left as it was.
//!
//! In: lines. Out: the same on the terminal's alternate screen (xterm control sequences, which
//! every terminal of today knows).
//! Must not know: what they say.

use std::io::{self, Write};

use rustix::termios::tcgetwinsize;

/// Alternate screen, cursor hidden.
const ENTER: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";
/// To the first column of the first line.
const HOME: &str = "\x1b[H";
/// From here to the end of the line, or of the screen.
const CLEAR_LINE: &str = "\x1b[K";
const CLEAR_BELOW: &str = "\x1b[J";

/// The alternate screen; dropping it brings back what was there before.
pub(super) struct Screen(io::Stdout);

impl Screen {
    pub(super) fn open() -> io::Result<Screen> {
        let mut screen = Screen(io::stdout());
        screen.write(ENTER)?;
        Ok(screen)
    }

    /// Width in characters.
    pub(super) fn columns(&self) -> usize {
        self.size().0
    }

    /// Shows as many of the lines as there is room for. Nothing flickers: each line is written
    /// over the one that was there.
    pub(super) fn show(&mut self, lines: &[String]) -> io::Result<()> {
        let rows = self.size().1;
        let mut text = HOME.to_owned();
        for (n, line) in lines.iter().take(rows).enumerate() {
            if n > 0 {
                text.push_str("\r\n");
            }
            text.push_str(line);
            text.push_str(CLEAR_LINE);
        }
        if lines.len() < rows {
            text.push_str(CLEAR_BELOW);
        }
        self.write(&text)
    }

    /// Columns and rows; what terminals once had, if this one does not tell.
    fn size(&self) -> (usize, usize) {
        match tcgetwinsize(&self.0) {
            Ok(size) if size.ws_col > 0 && size.ws_row > 0 => {
                (usize::from(size.ws_col), usize::from(size.ws_row))
            }
            _ => (80, 24),
        }
    }

    fn write(&mut self, text: &str) -> io::Result<()> {
        self.0.write_all(text.as_bytes())?;
        self.0.flush()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // A terminal that is gone needs no mending.
        let _ = self.write(LEAVE);
    }
}
