//! Targets for files that a daemon leaves for the next one (channels, histories, records of received
//! blocks), and for a guest's state.

use std::io::Write;

use towpath_forecast::forecaster::Forecaster;
use towpath_forecast::history::{History, Sample};
use towpath_forecast::moment::Moment;
use towpath_forecast::zone::Zone;
use towpath_migrator::store::ReceivedFile;
use towpath_protocol::space::{BlockRun, SpaceId};
use towpath_tunnel::foreign::channel_register;

use crate::AS_IT_IS;

/// The register of channels.
pub fn channels(bytes: &[u8]) -> bool {
    let Some((_, text)) = bytes.split_first() else {
        return false;
    };
    let Ok(again) = channel_register(text) else {
        return false;
    };
    let third = channel_register(&again).expect("what was written reads back");
    assert_eq!(third, again, "one register has one text");
    true
}

/// A history of a link's rates, either as it is or with a valid checksum; a history that parses is
/// forecast from.
pub fn history(bytes: &[u8]) -> bool {
    let Some((how, bytes)) = bytes.split_first() else {
        return false;
    };
    let read = if *how == AS_IT_IS {
        History::decode(bytes)
    } else {
        let sum = crc32c::crc32c(bytes).to_le_bytes();
        History::decode(&[bytes, &sum].concat())
    };
    let Ok(read) = read else {
        return false;
    };
    assert_eq!(History::decode(&read.encode()).as_ref(), Ok(&read));
    forecast_from(read);
    true
}

/// Makes all forecasts from a history, at the time of its end and at another.
fn forecast_from(history: History) {
    let last = history.hours().map(|(number, _)| number).last();
    let end = Moment::from_unix_seconds(last.unwrap_or_default().saturating_mul(3600));
    let now = Moment::from_unix_seconds(1_780_000_000);
    let mut forecaster = Forecaster::new(Zone::utc(), history);
    for now in [end, now] {
        forecaster.observe(now, Sample::CapLimited(1e6), 60);
        forecaster.observe(now, Sample::Capacity(1e6), 60);
        for ahead in [0, 60, 3600, 86_400] {
            let made = forecaster.forecast_under(now, now.plus_seconds(ahead), Some(1e9));
            for rate in made
                .iter()
                .flat_map(|made| [made.band.p10, made.band.p50, made.band.p90])
            {
                assert!(rate >= 0.0 && rate.is_finite(), "a rate of {rate}");
            }
        }
        let _ = forecaster.through(now, now, 1 << 30, |_| Some(1e7));
        let _ = forecaster.lower_bound(now);
    }
    let _ = History::decode(&forecaster.history().encode()).expect("what is kept reads back");
}

/// The file that records which blocks were received, either as it is or with valid checksums.
pub fn received(bytes: &[u8]) -> bool {
    let Some((how, bytes)) = bytes.split_first() else {
        return false;
    };
    let mut bytes = bytes.to_vec();
    if *how != AS_IT_IS {
        seal(&mut bytes);
    }
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(&bytes).expect("it takes bytes");
    let Ok(marks) = ReceivedFile::open(file) else {
        return false;
    };
    let spaces = marks.geometries();
    for (index, geometry) in (0..).zip(&spaces) {
        let received = marks.received(SpaceId(index)).expect("it is there");
        let all = BlockRun {
            start: 0,
            count: u32::try_from(geometry.block_count()).unwrap_or(u32::MAX),
        };
        assert!(received.count_in(all) <= geometry.block_count());
    }
    true
}

/// Gives the whole pages of such a file their checksums: the header's at its end, and one for every
/// line that is not empty.
fn seal(bytes: &mut Vec<u8>) {
    const PAGE_BYTES: usize = 4096;
    const LINE_BYTES: usize = 64;
    bytes.resize(bytes.len().next_multiple_of(PAGE_BYTES), 0);
    let Some((header, lines)) = bytes.split_at_mut_checked(PAGE_BYTES) else {
        return;
    };
    let (content, sum) = header.split_at_mut(PAGE_BYTES - 4);
    sum.copy_from_slice(&crc32c::crc32c(content).to_le_bytes());
    for (at, line) in (PAGE_BYTES as u64..)
        .step_by(LINE_BYTES)
        .zip(lines.chunks_mut(LINE_BYTES))
    {
        if line.iter().any(|byte| *byte != 0) {
            line[LINE_BYTES - 8..].fill(0);
            let crc = crc32c::crc32c(&at.to_le_bytes());
            let crc = crc32c::crc32c_append(crc, &line[..LINE_BYTES - 4]);
            line[LINE_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
        }
    }
}

/// A guest's state from a peer, down to its sections.
pub fn guest_state(bytes: &[u8]) -> bool {
    let Some((_, bytes)) = bytes.split_first() else {
        return false;
    };
    let Ok(again) = towpath_guest::reread_state(bytes) else {
        return false;
    };
    assert_eq!(again, bytes, "one state has one encoding");
    true
}
