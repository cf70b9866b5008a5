//! Tests of the guest interface: every message round-trips, and nothing else parses.

use proptest::prelude::*;

use super::*;
use crate::identity::GuestId;
use crate::message::{CONFIG_BYTES_MAX, SpaceInfo};
use crate::space::SpaceId;

const QUOTA: GuestQuota = GuestQuota {
    memory_bytes_max: 4 << 30,
    vcpu_count_max: 4,
};

fn config() -> GuestConfig {
    GuestConfig {
        id: GuestId(7),
        name: "till-7".parse().unwrap(),
        kind: GuestKind::Kvm,
        memory_bytes: 64 << 20,
        vcpu_count: 1,
        workload: Workload {
            dirty_pages_per_second: 1000,
            working_set_bytes: 16 << 20,
            incompressible_percent: 30,
            key: u64::MAX,
            heartbeat_interval_us: HEARTBEAT_INTERVAL_US,
        },
    }
}

fn description() -> Description {
    Description {
        config: config(),
        state: GuestState::Crashed {
            reason: "x".repeat(DETAIL_BYTES_MAX),
        },
        epoch: Some(Epoch(3)),
        heartbeat_sequence: 9,
        write_count: u64::MAX,
        page_in_progress: Some(PageInProgress {
            block: 1024,
            version: 2,
        }),
        tracking_method: TrackingMethod::KvmManualProtect,
        is_tracking: true,
        is_armed: false,
    }
}

fn requests() -> Vec<Request> {
    let part = vec![7; STATE_PART_BYTES_MAX];
    vec![
        Request::Hello { versions: VERSIONS },
        Request::Describe,
        Request::TakeMemory,
        Request::StartTracking,
        Request::Harvest {
            first_block: 64,
            block_count: HARVEST_BLOCKS_MAX,
        },
        Request::StopTracking,
        Request::Pause,
        Request::Resume,
        Request::SaveState,
        Request::ReadState { offset: 61_440 },
        Request::WriteState {
            offset: 0,
            bytes: part,
        },
        Request::LoadState,
        Request::ArmMissing,
        Request::DisarmMissing,
        Request::Run { epoch: Epoch(1) },
        Request::Quit,
        Request::Verify,
    ]
}

fn responses() -> Vec<Response> {
    let region = Region {
        address: 4096,
        bytes: 4096,
        memory_offset: 0,
    };
    vec![
        Response::Welcome {
            version: 1,
            process_id: 4_000_000,
        },
        Response::Described(Box::new(description())),
        Response::Memory { bytes: 1 << 40 },
        Response::Done,
        Response::Harvested {
            first_block: 128,
            words: vec![u64::MAX; HARVEST_BLOCKS_MAX as usize / 64],
        },
        Response::Paused {
            stopped_at_ns: u64::MAX,
        },
        Response::StateSaved { bytes: 1 << 20 },
        Response::StatePart {
            offset: 5,
            bytes: vec![1, 2, 3],
        },
        Response::Armed {
            regions: vec![region; REGION_COUNT_MAX],
        },
        Response::Running {
            epoch: Epoch(2),
            running_since_ns: 5,
        },
        Response::Verified {
            page_count: 7,
            mismatch: Some("page 3 is old".to_owned()),
        },
        Response::Failed(Reason {
            code: "E_STATE".to_owned(),
            detail: "d".repeat(DETAIL_BYTES_MAX),
        }),
    ]
}

fn packets() -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    for (number, request) in (1..).zip(requests()) {
        let mut packet = Vec::new();
        request.encode(number, &mut packet);
        assert_eq!(decode_request(&packet), Ok((number, request)));
        packets.push(packet);
    }
    for (number, response) in (1..).zip(responses()) {
        let mut packet = Vec::new();
        response.encode(number, &mut packet);
        assert_eq!(decode_response(&packet), Ok((number, response)));
        packets.push(packet);
    }
    packets
}

/// A packet with a valid envelope around any body.
fn forge(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    let start = begin_packet(1, &mut packet);
    packet.extend_from_slice(body);
    frame::finish_frame(kind, FLAG_CRITICAL, start, &mut packet);
    packet
}

fn forged_fault(kind: u8, body: &[u8]) -> Code {
    let packet = forge(kind, body);
    let request = decode_request(&packet).err();
    let fault = request.filter(|fault| fault.code != Code::UnknownKind);
    fault
        .unwrap_or_else(|| decode_response(&packet).expect_err("forged"))
        .code
}

#[test]
fn every_message_round_trips_within_a_packet() {
    for packet in packets() {
        assert!(packet.len() <= PACKET_BYTES_MAX, "{}", packet.len());
    }
}

#[test]
fn a_cut_or_longer_packet_is_refused() {
    for packet in packets() {
        for length in (0..packet.len().min(80)).chain([packet.len() - 1]) {
            let cut = &packet[..length];
            assert_eq!(decode_request(cut).unwrap_err().code, Code::Truncated);
            assert_eq!(decode_response(cut).unwrap_err().code, Code::Truncated);
        }
        let longer = [packet.as_slice(), &[0]].concat();
        assert_eq!(decode_request(&longer).unwrap_err().code, Code::Framing);
        assert_eq!(decode_response(&longer).unwrap_err().code, Code::Framing);
    }
}

#[test]
fn a_request_is_not_a_response_and_unknown_kinds_are_neither() {
    for kind in [0, 18, 63, 76, 255] {
        let packet = forge(kind, &[]);
        assert_eq!(decode_request(&packet).unwrap_err().code, Code::UnknownKind);
        assert_eq!(
            decode_response(&packet).unwrap_err().code,
            Code::UnknownKind
        );
    }
    assert!(decode_response(&forge(2, &[])).is_err());
    assert!(decode_request(&forge(67, &[])).is_err());
}

#[test]
fn bytes_left_over_inside_a_body_are_refused() {
    assert_eq!(forged_fault(2, &[0]), Code::Framing);
    assert_eq!(forged_fault(15, &[1, 1]), Code::Framing);
    assert_eq!(forged_fault(67, &[0]), Code::Framing);
}

#[test]
fn harvests_outside_any_space_are_refused() {
    let body = |first: u64, count: u32| {
        let mut body = Vec::new();
        put(&(first, count), &mut body);
        body
    };
    for (first, count) in [
        (1, 1),
        (0, 0),
        (0, HARVEST_BLOCKS_MAX + 1),
        (u64::MAX - 63, 64),
        (BLOCK_COUNT_MAX, 1),
    ] {
        assert_eq!(forged_fault(5, &body(first, count)), Code::Range);
    }
    assert_eq!(forged_fault(68, &[0; 8]), Code::Range);
    assert_eq!(forged_fault(68, &[0; 15]), Code::Truncated);
    assert_eq!(forged_fault(68, &[0xff; 16]), Code::Range);
    let words = vec![0; 8 + HARVEST_BLOCKS_MAX as usize / 8 + 8];
    assert_eq!(forged_fault(68, &words), Code::Range);
}

#[test]
fn parts_of_state_outside_the_cap_are_refused() {
    let part = |offset: u32, length: usize| {
        let mut body = Vec::new();
        put_part(offset, &vec![0; length], &mut body);
        body
    };
    assert_eq!(forged_fault(11, &part(0, 0)), Code::Range);
    assert_eq!(
        forged_fault(11, &part(0, STATE_PART_BYTES_MAX + 1)),
        Code::Range
    );
    assert_eq!(forged_fault(11, &part(1 << 20, 1)), Code::Range);
    assert_eq!(forged_fault(71, &part(u32::MAX, 1)), Code::Range);
    assert_eq!(forged_fault(11, &[0; 3]), Code::Truncated);
}

#[test]
fn f10_a_layout_that_differs_is_refused_with_every_difference() {
    let space = |id, block_bytes, block_count| SpaceInfo {
        id: SpaceId(id),
        block_bytes,
        block_count,
    };
    assert_eq!(config().check_spaces(&[space(0, 4096, 16384)]), Ok(()));
    let fault = config()
        .check_spaces(&[space(0, 65536, 1024), space(1, 65536, 5)])
        .unwrap_err();
    assert_eq!(fault.code, Code::Layout);
    for part in ["2 spaces", "65536 bytes", "1024 blocks", "space 1"] {
        assert!(fault.detail.contains(part), "{part}: {fault}");
    }
    assert!(config().check_spaces(&[]).is_err());
}

#[test]
fn f11_more_than_the_quota_is_refused_before_anything_is_made() {
    assert_eq!(config().check(&QUOTA), Ok(()));
    let absurd = GuestConfig {
        memory_bytes: 16 << 40,
        vcpu_count: 1000,
        ..config()
    };
    let fault = absurd.check(&QUOTA).unwrap_err();
    assert_eq!(fault.code, Code::Quota);
    for part in [
        "memory of 16TiB is above the quota of 4GiB",
        "1000 vcpus are above the quota of 4",
        "in steps of",
    ] {
        assert!(fault.detail.contains(part), "{part}: {fault}");
    }
}

#[test]
fn impossible_guests_are_refused_with_every_reason() {
    let mut wrong = config();
    wrong.memory_bytes = (8 << 20) + 4096;
    wrong.vcpu_count = 0;
    wrong.workload.working_set_bytes = 1 << 30;
    wrong.workload.incompressible_percent = 101;
    wrong.workload.dirty_pages_per_second = u32::MAX;
    wrong.workload.heartbeat_interval_us = 0;
    let fault = wrong.check(&QUOTA).unwrap_err();
    assert_eq!(fault.code, Code::Layout);
    assert_eq!(fault.detail.split("; ").count(), 6, "{fault}");
}

#[test]
fn a_description_round_trips_as_bytes_and_refuses_the_rest() {
    let bytes = config().to_bytes();
    assert!(bytes.len() < 200);
    assert_eq!(GuestConfig::from_bytes(&bytes), Ok(config()));
    let longer = [bytes.as_slice(), &[0]].concat();
    assert_eq!(
        GuestConfig::from_bytes(&longer).unwrap_err().code,
        Code::Framing
    );
    assert_eq!(
        GuestConfig::from_bytes(&bytes[..9]).unwrap_err().code,
        Code::Meta
    );
    let large = vec![0; CONFIG_BYTES_MAX + 1];
    assert_eq!(
        GuestConfig::from_bytes(&large).unwrap_err().code,
        Code::TooLarge
    );
}

#[test]
fn l03_regions_that_are_not_exactly_the_guests_memory_are_refused() {
    let region = |address, bytes, memory_offset| Region {
        address,
        bytes,
        memory_offset,
    };
    let (a, b) = (region(0x10000, 0x2000, 0), region(0x20000, 0x1000, 0x2000));
    assert_eq!(check_regions(&[a, b], 0x3000), Ok(()));
    for (regions, memory_bytes) in [
        (vec![], 0x1000),
        (vec![a], 0x3000),
        (vec![a, b], 0x2000),
        (vec![b, a], 0x3000),
        (vec![a, region(0x11000, 0x1000, 0x2000)], 0x3000),
        (vec![a, region(0x20000, 0x1000, 0x1000)], 0x3000),
        (vec![region(0x10001, 0x1000, 0)], 0x1000),
        (vec![region(0x10000, 0x1001, 0)], 0x1001),
        (vec![region(0, 0x1000, 0)], 0x1000),
        (vec![region(u64::MAX - 0xfff, 0x1000, 0)], 0x1000),
        (vec![a, region(0x20000, 0, 0x2000), b], 0x3000),
    ] {
        let fault = check_regions(&regions, memory_bytes).expect_err("foreign");
        assert_eq!(fault.code, Code::Layout, "{regions:?}");
    }
}

proptest! {
    #[test]
    fn noise_never_panics_and_never_passes_the_checksum(
        bytes in prop::collection::vec(any::<u8>(), 0..200)
    ) {
        prop_assert!(decode_request(&bytes).is_err());
        prop_assert!(decode_response(&bytes).is_err());
    }

    #[test]
    fn any_body_in_a_right_envelope_parses_or_is_refused(
        kind in any::<u8>(), body in prop::collection::vec(any::<u8>(), 0..300)
    ) {
        let packet = forge(kind, &body);
        if let Ok((number, request)) = decode_request(&packet) {
            let mut again = Vec::new();
            request.encode(number, &mut again);
            prop_assert_eq!(decode_request(&again), Ok((number, request)));
        }
        if let Ok((number, response)) = decode_response(&packet) {
            let mut again = Vec::new();
            response.encode(number, &mut again);
            prop_assert_eq!(decode_response(&again), Ok((number, response)));
        }
    }
}
