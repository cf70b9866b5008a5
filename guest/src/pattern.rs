//! The required contents of every byte of the working set: a function of page number, version and
//! key.
//!
//! ```text
//!   0       8      16        24      32         40      48      56       64                    4096
//!   +-------+------+---------+-------+----------+-------+-------+--------+---------- ... ---------+
//!   | magic | page | version | mix   | !version | mix   | mix   | !mix   | body: 504 words        |
//!   +-------+------+---------+-------+----------+-------+-------+--------+---------- ... ---------+
//! ```
//!
//! `mix` is a hash of page, version and key. The body of a compressible page repeats `mix`. The
//! body of an incompressible page is 504 words from a pool of noise, which is generated from the
//! key, at a position given by `mix`. So the payload writes a page with a handful of instructions
//! and one string instruction, and each byte can be checked from outside with the guest's
//! description alone. Versions only grow, and each write adds one: the sum of all versions is the
//! number of writes, and a single lost write breaks it.

/// Bytes of a page.
pub const PAGE_BYTES: usize = 4096;

/// Words of 8 bytes in a page.
pub const PAGE_WORDS: usize = PAGE_BYTES / 8;

/// First word of every page: `TOWPPAGE`.
pub const MAGIC: u64 = u64::from_le_bytes(*b"TOWPPAGE");

/// Words of the header.
pub const HEADER_WORDS: usize = 8;

/// Words of the body.
pub const BODY_WORDS: usize = PAGE_WORDS - HEADER_WORDS;

/// Number of possible start positions of a body in the pool, in words: 1 MiB, so that the pages of
/// one 64 KiB chunk rarely overlap and a compressor cannot shrink them.
pub const POOL_START_WORDS: usize = 1 << 17;

/// Words of the pool.
pub const POOL_WORDS: usize = POOL_START_WORDS + BODY_WORDS;

/// Multiplies the page number. Odd, and near the golden ratio, so that consecutive pages spread
/// evenly.
pub const PAGE_FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

/// Multiplies the version.
pub const VERSION_FACTOR: u64 = 0xc2b2_ae3d_27d4_eb4f;

/// Multiplies the folded sum.
pub const FOLD_FACTOR: u64 = 0xff51_afd7_ed55_8ccd;

/// The hash of page, version and key from which every word of a page is derived.
#[must_use]
pub const fn mix(page: u64, version: u64, key: u64) -> u64 {
    let mut x = page.wrapping_mul(PAGE_FACTOR) ^ version.wrapping_mul(VERSION_FACTOR) ^ key;
    x ^= x >> 32;
    x = x.wrapping_mul(FOLD_FACTOR);
    x ^ (x >> 29)
}

/// A page is incompressible if its 32-bit hash is below this.
#[must_use]
pub const fn incompressible_threshold(percent: u8) -> u64 {
    ((percent as u64) << 32) / 100
}

/// The start of a body in the pool, in words.
#[must_use]
#[allow(
    clippy::cast_possible_truncation,
    reason = "masked to 17 bits, below any width of usize"
)]
pub const fn pool_start(mix: u64) -> usize {
    (mix & (POOL_START_WORDS as u64 - 1)) as usize
}

/// A byte with wrong contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// The header is not the one of this page under this key.
    #[error("page {page}: header word {word} is {found:#x}, not {expected:#x}")]
    Header {
        /// The page that was checked.
        page: u64,
        /// Index of the wrong word in the page.
        word: usize,
        /// The value that was found.
        found: u64,
        /// The value that was expected.
        expected: u64,
    },
    /// The body does not match the version in the header.
    #[error("page {page} version {version}: word {word} is {found:#x}, not {expected:#x}")]
    Body {
        /// The page that was checked.
        page: u64,
        /// The version in its header.
        version: u64,
        /// Index of the wrong word in the page.
        word: usize,
        /// The value that was found.
        found: u64,
        /// The value that was expected.
        expected: u64,
    },
}

/// The pattern of one guest: its key, its share of incompressible pages, and its pool of noise.
pub struct Pattern {
    key: u64,
    threshold: u64,
    pool: Vec<u64>,
}

impl std::fmt::Debug for Pattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { key, threshold, .. } = self;
        write!(f, "pattern of key {key:#x}, threshold {threshold:#x}")
    }
}

impl Pattern {
    /// The pattern of a workload.
    #[must_use]
    pub fn new(key: u64, incompressible_percent: u8) -> Self {
        let mut state = key;
        let pool = std::iter::repeat_with(|| {
            state = state.wrapping_add(PAGE_FACTOR);
            let mut x = state;
            x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            x ^ (x >> 31)
        });
        Self {
            key,
            threshold: incompressible_threshold(incompressible_percent),
            pool: pool.take(POOL_WORDS).collect(),
        }
    }

    /// The pool of noise, as it is in the machine's memory.
    #[must_use]
    pub fn pool(&self) -> &[u64] {
        &self.pool
    }

    /// Whether a page's body is noise. The same for all versions of the page.
    #[must_use]
    pub const fn is_incompressible(&self, page: u64) -> bool {
        page.wrapping_mul(PAGE_FACTOR) >> 32 < self.threshold
    }

    /// The words of one version of a page.
    pub fn words(&self, page: u64, version: u64, words: &mut [u64; PAGE_WORDS]) {
        let mix = mix(page, version, self.key);
        let header = [MAGIC, page, version, mix, !version, mix, mix, !mix];
        words[..HEADER_WORDS].copy_from_slice(&header);
        let body = &mut words[HEADER_WORDS..];
        if self.is_incompressible(page) {
            let start = pool_start(mix);
            body.copy_from_slice(&self.pool[start..start + BODY_WORDS]);
        } else {
            body.fill(mix);
        }
    }

    /// The bytes of one version of a page.
    pub fn fill(&self, page: u64, version: u64, bytes: &mut [u8; PAGE_BYTES]) {
        let mut words = [0; PAGE_WORDS];
        self.words(page, version, &mut words);
        for (bytes, word) in bytes.chunks_exact_mut(8).zip(words) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
    }

    /// Checks every byte of a page and returns the version it holds.
    ///
    /// # Errors
    ///
    /// The first word that is wrong.
    pub fn check(&self, page: u64, bytes: &[u8; PAGE_BYTES]) -> Result<u64, Mismatch> {
        let found = to_words(bytes);
        let version = found[2];
        let mut expected = [0; PAGE_WORDS];
        self.words(page, version, &mut expected);
        let Some(word) = (0..PAGE_WORDS).find(|&word| found[word] != expected[word]) else {
            return Ok(version);
        };
        let (found, expected) = (found[word], expected[word]);
        Err(if word < HEADER_WORDS {
            Mismatch::Header {
                page,
                word,
                found,
                expected,
            }
        } else {
            Mismatch::Body {
                page,
                version,
                word,
                found,
                expected,
            }
        })
    }

    /// Checks a page that is being rewritten: every word must be that of `version` or of the
    /// version before.
    ///
    /// # Errors
    ///
    /// The first word that matches neither.
    pub fn check_in_progress(
        &self,
        page: u64,
        version: u64,
        bytes: &[u8; PAGE_BYTES],
    ) -> Result<(), Mismatch> {
        let found = to_words(bytes);
        let (mut old, mut new) = ([0; PAGE_WORDS], [0; PAGE_WORDS]);
        self.words(page, version.wrapping_sub(1), &mut old);
        self.words(page, version, &mut new);
        for word in 0..PAGE_WORDS {
            if found[word] != old[word] && found[word] != new[word] {
                return Err(Mismatch::Body {
                    page,
                    version,
                    word,
                    found: found[word],
                    expected: new[word],
                });
            }
        }
        Ok(())
    }
}

fn to_words(bytes: &[u8; PAGE_BYTES]) -> [u64; PAGE_WORDS] {
    let mut words = [0; PAGE_WORDS];
    for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(8)) {
        *word = u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: u64 = 0x1234_5678_9abc_def0;

    fn page(pattern: &Pattern, page: u64, version: u64) -> [u8; PAGE_BYTES] {
        let mut bytes = [0; PAGE_BYTES];
        pattern.fill(page, version, &mut bytes);
        bytes
    }

    #[test]
    fn a_page_names_its_version_and_nothing_else_passes() {
        let pattern = Pattern::new(KEY, 50);
        for number in 1024..1100 {
            let bytes = page(&pattern, number, 7);
            assert_eq!(pattern.check(number, &bytes), Ok(7));
            assert!(pattern.check(number + 1, &bytes).is_err());
            assert!(Pattern::new(KEY + 1, 50).check(number, &bytes).is_err());
        }
    }

    #[test]
    fn every_single_flipped_byte_is_found() {
        let pattern = Pattern::new(KEY, 50);
        for number in [1024, 1025, 1026] {
            for position in 0..PAGE_BYTES {
                let mut bytes = page(&pattern, number, 3);
                bytes[position] ^= 0x10;
                assert!(pattern.check(number, &bytes).is_err(), "byte {position}");
            }
        }
        assert!(pattern.check(0, &[0; PAGE_BYTES]).is_err());
    }

    #[test]
    fn the_share_of_noise_is_what_was_asked_for() {
        for percent in [0, 1, 30, 99, 100] {
            let pattern = Pattern::new(KEY, percent);
            let noise = (1024..101_024).filter(|&page| pattern.is_incompressible(page));
            let share = noise.count() as u64;
            assert!(share.abs_diff(u64::from(percent) * 1000) <= 50, "{share}");
        }
    }

    #[test]
    fn a_page_in_progress_mixes_two_versions_and_no_third() {
        let pattern = Pattern::new(KEY, 100);
        let (old, new) = (page(&pattern, 2000, 4), page(&pattern, 2000, 5));
        let mut torn = old;
        torn[..1000].copy_from_slice(&new[..1000]);
        assert_eq!(pattern.check_in_progress(2000, 5, &torn), Ok(()));
        assert!(pattern.check(2000, &torn).is_err());
        assert!(pattern.check_in_progress(2000, 6, &torn).is_err());
    }
}
