//! The file of received blocks: which blocks of a guest have arrived. It survives a kill of the
//! migrator.
//!
//! ```text
//!  0            4096                8192
//!  +------------+-------------------+------------------------+------------------------+--
//!  | header     | position line     | lines of space 0       | lines of space 1       |
//!  +------------+-------------------+------------------------+------------------------+--
//!
//!  a line of 64 bytes:  | 7 words of 64 blocks | 0 (4) | CRC32C of its offset and the rest (4) |
//! ```
//!
//! A line never crosses a page, so the kernel writes it completely or not at all if the process is
//! killed. A line of zeros was never written: none of its blocks has arrived. Nothing is flushed to
//! disk: a power loss destroys the blocks themselves, which are in memory, and the owner of the
//! file then discards it. Blocks are marked *after* they are installed, and unmarked *before*
//! anything relies on their being stale, so the file never promises too much.

use std::fs::File;
use std::os::unix::fs::FileExt;

use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::identity::AttemptId;
use towpath_protocol::space::{BlockRun, BlockSet, Geometry, SPACE_COUNT_MAX, SpaceId};

const MAGIC: [u8; 8] = *b"TOWPATHR";
const VERSION: u32 = 1;
const PAGE_BYTES: usize = 4096;
const HEADER_CRC_AT: usize = PAGE_BYTES - 4;
const GEOMETRIES_AT: usize = 32;
const GEOMETRY_BYTES: usize = 12;
const POSITION_AT: u64 = PAGE_BYTES as u64;
const LINES_AT: u64 = 2 * PAGE_BYTES as u64;
const LINE_BYTES: usize = 64;
const LINE_WORDS: u64 = 7;
const LINE_CRC_AT: usize = LINE_BYTES - 4;

const _: () = assert!(GEOMETRIES_AT + SPACE_COUNT_MAX * GEOMETRY_BYTES <= HEADER_CRC_AT);

/// How far the target has taken in the stream of chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Position {
    /// Every chunk up to this number is installed and marked.
    pub sequence: u64,
    /// The transcript hash after that chunk.
    pub chain: [u8; 32],
}

/// The file and a copy of its contents in memory.
#[derive(Debug)]
pub struct ReceivedFile {
    file: File,
    attempt: AttemptId,
    spaces: Vec<SpaceMarks>,
    position: Position,
    lines: Box<[u8]>,
}

#[derive(Debug)]
struct SpaceMarks {
    geometry: Geometry,
    received: BlockSet,
    offset: u64,
}

impl ReceivedFile {
    /// Bytes of the file for a guest with these spaces.
    ///
    /// # Errors
    ///
    /// `E_LAYOUT` if there are none or more than [`SPACE_COUNT_MAX`].
    pub fn file_bytes(spaces: &[Geometry]) -> Result<u64, Fault> {
        if spaces.is_empty() || spaces.len() > SPACE_COUNT_MAX {
            let count = spaces.len();
            return Err(Fault::new(
                Code::Layout,
                format!("a guest of {count} spaces"),
            ));
        }
        Ok(LINES_AT + spaces.iter().map(|space| region_bytes(*space)).sum::<u64>())
    }

    /// Initializes a file of [`ReceivedFile::file_bytes`] zero bytes, with no block marked.
    ///
    /// # Errors
    ///
    /// `E_LAYOUT` as [`ReceivedFile::file_bytes`], `E_IO`.
    pub fn create(file: File, attempt: AttemptId, spaces: &[Geometry]) -> Result<Self, Fault> {
        Self::file_bytes(spaces)?;
        let header = build_header(attempt, spaces);
        file.write_all_at(&header, 0)
            .map_err(|error| unwritable(&error))?;
        Ok(Self::empty(file, attempt, spaces))
    }

    /// Reads an existing file.
    ///
    /// # Errors
    ///
    /// `E_IMAGE_LOST` if any byte of it is corrupt, `E_IO`.
    pub fn open(file: File) -> Result<Self, Fault> {
        let unreadable = |error: std::io::Error| {
            Fault::new(Code::Io, format!("the marks of what arrived: {error}"))
        };
        let file_bytes = file.metadata().map_err(unreadable)?.len();
        let mut header = [0; PAGE_BYTES];
        let mut page = [0; PAGE_BYTES];
        if file_bytes < LINES_AT {
            return Err(lost("its end"));
        }
        file.read_exact_at(&mut header, 0).map_err(unreadable)?;
        let (attempt, spaces) = parse_header(&header).ok_or_else(|| lost("its header"))?;
        if Self::file_bytes(&spaces)? != file_bytes {
            return Err(lost("its size"));
        }
        file.read_exact_at(&mut page, POSITION_AT)
            .map_err(unreadable)?;
        let position = parse_position(&page).ok_or_else(|| lost("its position"))?;
        let mut received = Self::empty(file, attempt, &spaces);
        received.position = position;
        for marks in &mut received.spaces {
            let region = marks.offset..marks.offset + region_bytes(marks.geometry);
            for page_at in region.step_by(PAGE_BYTES) {
                let read = received.file.read_exact_at(&mut page, page_at);
                read.map_err(unreadable)?;
                marks.take_page(page_at, &page)?;
            }
        }
        Ok(received)
    }

    fn empty(file: File, attempt: AttemptId, spaces: &[Geometry]) -> Self {
        let mut offset = LINES_AT;
        let marks = spaces.iter().map(|geometry| {
            let marks = SpaceMarks {
                geometry: *geometry,
                received: BlockSet::empty(geometry.block_count()),
                offset,
            };
            offset += region_bytes(*geometry);
            marks
        });
        Self {
            spaces: marks.collect(),
            file,
            attempt,
            position: Position::default(),
            lines: vec![0; PAGE_BYTES].into_boxed_slice(),
        }
    }

    /// The attempt in which the blocks arrived.
    #[must_use]
    pub const fn attempt(&self) -> AttemptId {
        self.attempt
    }

    /// The spaces of the guest.
    #[must_use]
    pub fn geometries(&self) -> Vec<Geometry> {
        self.spaces.iter().map(|marks| marks.geometry).collect()
    }

    /// How far the stream of chunks has been taken in.
    #[must_use]
    pub const fn position(&self) -> Position {
        self.position
    }

    /// The blocks of a space that have arrived.
    ///
    /// # Errors
    ///
    /// `E_RANGE` if there is no such space.
    pub fn received(&self, space: SpaceId) -> Result<&BlockSet, Fault> {
        let marks = self.spaces.get(usize::from(space.0));
        marks
            .map(|marks| &marks.received)
            .ok_or_else(|| no_space(space))
    }

    /// Marks blocks that are installed.
    ///
    /// # Errors
    ///
    /// `E_RANGE` if they lie outside the space, `E_IO`.
    pub fn insert_run(&mut self, space: SpaceId, run: BlockRun) -> Result<(), Fault> {
        let marks = self.checked(space, run)?;
        if marks.received.count_in(run) == u64::from(run.count) {
            return Ok(());
        }
        marks.received.insert_run(run);
        self.write_lines(space, run)
    }

    /// Unmarks blocks that became stale: their newest contents are yet to come.
    ///
    /// # Errors
    ///
    /// `E_RANGE` if they lie outside the space. `E_IO`: the file may then promise stale blocks, so
    /// the image must be given up.
    pub fn remove_run(&mut self, space: SpaceId, run: BlockRun) -> Result<(), Fault> {
        let marks = self.checked(space, run)?;
        if marks.received.count_in(run) == 0 {
            return Ok(());
        }
        marks.received.remove_run(run);
        self.write_lines(space, run)
    }

    /// Notes how far the stream of chunks has been taken in. Its chunks must be installed and
    /// marked.
    ///
    /// # Errors
    ///
    /// `E_IO`.
    pub fn set_position(&mut self, position: Position) -> Result<(), Fault> {
        self.position = position;
        let mut line = [0; LINE_BYTES];
        line[..8].copy_from_slice(&position.sequence.to_le_bytes());
        line[8..40].copy_from_slice(&position.chain);
        seal_line(POSITION_AT, &mut line);
        self.file
            .write_all_at(&line, POSITION_AT)
            .map_err(|error| unwritable(&error))
    }

    fn checked(&mut self, space: SpaceId, run: BlockRun) -> Result<&mut SpaceMarks, Fault> {
        let marks = self.spaces.get_mut(usize::from(space.0));
        let marks = marks.ok_or_else(|| no_space(space))?;
        marks.geometry.check(run)?;
        Ok(marks)
    }

    /// Writes the lines that hold the blocks of a checked run, one page at a time.
    fn write_lines(&mut self, space: SpaceId, run: BlockRun) -> Result<(), Fault> {
        let marks = &self.spaces[usize::from(space.0)];
        let mut line = run.start / 64 / LINE_WORDS;
        let line_end = (run.end() - 1) / 64 / LINE_WORDS + 1;
        while line < line_end {
            let begin = marks.offset + line * LINE_BYTES as u64;
            let mut have = 0;
            for (slot, number) in self.lines.chunks_exact_mut(LINE_BYTES).zip(line..line_end) {
                marks.write_line(number, slot);
                have += LINE_BYTES;
            }
            self.file
                .write_all_at(&self.lines[..have], begin)
                .map_err(|error| unwritable(&error))?;
            line += (have / LINE_BYTES) as u64;
        }
        Ok(())
    }
}

impl SpaceMarks {
    fn write_line(&self, number: u64, line: &mut [u8]) {
        line.fill(0);
        let words = number * LINE_WORDS..(number + 1) * LINE_WORDS;
        for (bytes, word) in line.chunks_exact_mut(8).zip(words) {
            bytes.copy_from_slice(&self.received.word(word).to_le_bytes());
        }
        seal_line(self.offset + number * LINE_BYTES as u64, line);
    }

    fn take_page(&mut self, page_at: u64, page: &[u8; PAGE_BYTES]) -> Result<(), Fault> {
        let line_at = (page_at..).step_by(LINE_BYTES);
        for (line_at, line) in line_at.zip(page.chunks_exact(LINE_BYTES)) {
            if line.iter().all(|byte| *byte == 0) {
                continue;
            }
            if !is_sealed(line_at, line) {
                return Err(lost("a line of marks"));
            }
            let number = (line_at - self.offset) / LINE_BYTES as u64;
            let words = number * LINE_WORDS..(number + 1) * LINE_WORDS;
            for (bytes, word) in line.chunks_exact(8).zip(words) {
                let bits = u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
                let inserted = self.received.insert_word(word, bits);
                inserted.map_err(|_| lost("a mark outside its space"))?;
            }
        }
        Ok(())
    }
}

/// Bytes of a space's lines, rounded up to whole pages.
fn region_bytes(geometry: Geometry) -> u64 {
    let lines = geometry.block_count().div_ceil(64 * LINE_WORDS);
    (lines * LINE_BYTES as u64).next_multiple_of(PAGE_BYTES as u64)
}

fn line_crc(line_at: u64, line: &[u8]) -> [u8; 4] {
    let crc = crc32c::crc32c(&line_at.to_le_bytes());
    crc32c::crc32c_append(crc, &line[..LINE_CRC_AT]).to_le_bytes()
}

fn seal_line(line_at: u64, line: &mut [u8]) {
    let crc = line_crc(line_at, line);
    line[LINE_CRC_AT..].copy_from_slice(&crc);
}

fn is_sealed(line_at: u64, line: &[u8]) -> bool {
    line[LINE_CRC_AT..] == line_crc(line_at, line) && line[LINE_CRC_AT - 4..LINE_CRC_AT] == [0; 4]
}

fn parse_position(page: &[u8; PAGE_BYTES]) -> Option<Position> {
    let (line, rest) = page.split_at(LINE_BYTES);
    if rest.iter().any(|byte| *byte != 0) {
        return None;
    }
    if line.iter().all(|byte| *byte == 0) {
        return Some(Position::default());
    }
    is_sealed(POSITION_AT, line).then(|| Position {
        sequence: u64::from_le_bytes(line[..8].try_into().expect("eight bytes")),
        chain: line[8..40].try_into().expect("32 bytes"),
    })
}

fn build_header(attempt: AttemptId, spaces: &[Geometry]) -> [u8; PAGE_BYTES] {
    let mut header = [0; PAGE_BYTES];
    header[..8].copy_from_slice(&MAGIC);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    let count = u32::try_from(spaces.len()).expect("few spaces");
    header[12..16].copy_from_slice(&count.to_le_bytes());
    header[16..32].copy_from_slice(&attempt.0.to_le_bytes());
    let slots = header[GEOMETRIES_AT..].chunks_exact_mut(GEOMETRY_BYTES);
    for (slot, geometry) in slots.zip(spaces) {
        slot[..4].copy_from_slice(&geometry.block_bytes().to_le_bytes());
        slot[4..].copy_from_slice(&geometry.block_count().to_le_bytes());
    }
    let crc = crc32c::crc32c(&header[..HEADER_CRC_AT]);
    header[HEADER_CRC_AT..].copy_from_slice(&crc.to_le_bytes());
    header
}

fn parse_header(header: &[u8; PAGE_BYTES]) -> Option<(AttemptId, Vec<Geometry>)> {
    let number = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("four bytes"));
    let crc = crc32c::crc32c(&header[..HEADER_CRC_AT]);
    let is_whole = number(HEADER_CRC_AT) == crc && header[..8] == MAGIC && number(8) == VERSION;
    let count = number(12) as usize;
    if !is_whole || count == 0 || count > SPACE_COUNT_MAX {
        return None;
    }
    let attempt = u128::from_le_bytes(header[16..32].try_into().expect("16 bytes"));
    let slots = header[GEOMETRIES_AT..].chunks_exact(GEOMETRY_BYTES);
    let geometries = slots.take(count).map(|slot| {
        let block_bytes = u32::from_le_bytes(slot[..4].try_into().expect("four bytes"));
        let block_count = u64::from_le_bytes(slot[4..].try_into().expect("eight bytes"));
        Geometry::new(block_bytes, block_count).ok()
    });
    Some((AttemptId(attempt), geometries.collect::<Option<_>>()?))
}

fn lost(what: &str) -> Fault {
    Fault::new(
        Code::ImageLost,
        format!("the marks of what arrived are damaged: {what}"),
    )
}

fn no_space(space: SpaceId) -> Fault {
    let number = space.0;
    Fault::new(Code::Range, format!("the guest has no space {number}"))
}

fn unwritable(error: &std::io::Error) -> Fault {
    Fault::new(
        Code::Io,
        format!("the marks of what arrived cannot be written: {error}"),
    )
}
