//! Valid inputs for every target, from which mutation starts: noise alone never gets past a header.

use std::io::{Read, Seek, SeekFrom};

use towpath_forecast::history::{History, Sample};
use towpath_forecast::moment::Moment;
use towpath_migrator::codec::{BlockReader, EncodedChunk, Encoder, Job, Level};
use towpath_migrator::store::ReceivedFile;
use towpath_protocol::class::{Class, Leg};
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::frame::HEADER_BYTES;
use towpath_protocol::guest_api::{Region, Request, Response};
use towpath_protocol::identity::{AttemptId, Epoch, GuestId, HostIdentity, MigrationId, Name};
use towpath_protocol::image::Manifest;
use towpath_protocol::message::{
    FinalEnd, Hello, Lane, Message, MissingPart, Prepare, Reason, Received, SpaceInfo, Welcome,
};
use towpath_protocol::ownership::{Decider, Origin, Record, Root, State, Verdict};
use towpath_protocol::preamble::{
    self as link, Accepted, Begin, Cut, Join, Joined, LinkId, Open, PathReport, Preamble, Report,
    Resume, RunId, StreamId,
};
use towpath_protocol::space::{BlockRun, Geometry, MEMORY, SpaceId};
use towpath_protocol::version::VersionRange;

use crate::{AS_IT_IS, IN_A_FRAME, trust};

const VERSIONS: VersionRange = VersionRange { min: 1, max: 1 };

/// The seeds of a target; none for an unknown one.
#[must_use]
pub fn of(target: &str) -> Vec<Vec<u8>> {
    match target {
        "wire" => wire(),
        "preamble" => preambles()
            .iter()
            .map(Preamble::encode)
            .flat_map(dressed)
            .collect(),
        "guest_api" => guest_api(),
        "journal" => records(),
        "config" => configs(),
        "requests" => requests(),
        "packets" => packets(),
        "certificates" => certificates(),
        "revocations" => revocations(),
        "channels" => channels(),
        "history" => histories(),
        "received" => received(),
        "guest_state" => guest_states(),
        _ => Vec::new(),
    }
}

/// A frame as it is, and its body in an envelope that mutation does not break.
fn dressed(frame: Vec<u8>) -> [Vec<u8>; 2] {
    let body = [&[IN_A_FRAME, frame[2]], &frame[HEADER_BYTES..]].concat();
    [plain(&frame), body]
}

fn plain(bytes: &[u8]) -> Vec<u8> {
    [&[AS_IT_IS], bytes].concat()
}

fn name(text: &str) -> Name {
    text.parse().expect("a name")
}

fn host(text: &str) -> HostIdentity {
    HostIdentity {
        trust_domain: name("shop.example"),
        site: name("edge"),
        host: name(text),
    }
}

fn wire() -> Vec<Vec<u8>> {
    let frames = messages().into_iter().map(|message| {
        let mut frame = Vec::new();
        message.encode(&mut frame);
        frame
    });
    let frames: Vec<Vec<u8>> = frames.chain(chunks()).collect();
    let stream = plain(&frames.concat());
    frames
        .into_iter()
        .flat_map(dressed)
        .chain([stream])
        .collect()
}

fn messages() -> Vec<Message> {
    let received = Received {
        through_sequence: 9,
        chain: [3; 32],
    };
    let reason = Reason {
        code: "E_QUOTA".to_owned(),
        detail: "no room".to_owned(),
    };
    vec![
        Message::Hello(Hello {
            versions: VERSIONS,
            migration: MigrationId(1),
            attempt: AttemptId(2),
            guest: GuestId(3),
            lane: Lane::Bulk,
            link: 1,
        }),
        Message::Welcome(Welcome { version: 1 }),
        Message::Prepare(Prepare {
            name: name("till-7"),
            epoch: Epoch(4),
            spaces: vec![SpaceInfo {
                id: MEMORY,
                block_bytes: 4096,
                block_count: 1 << 16,
            }],
            config: vec![1; 20],
        }),
        Message::Prepared(received),
        Message::Refused(reason.clone()),
        Message::Received(received),
        Message::FinalBegin,
        Message::StatePart(vec![7; 40]),
        Message::MissingPart(MissingPart {
            space: MEMORY,
            first_word: 5,
            words: vec![u64::MAX, 1, 0],
        }),
        Message::MissingEnd(received),
        Message::Manifest(Manifest {
            position: received,
            missing_count: 65,
            missing_digest: [5; 32],
            state_bytes: 40,
            state_digest: [6; 32],
            config_digest: [7; 32],
            spaces_digest: [8; 32],
        }),
        Message::FinalEnd(FinalEnd {
            through_sequence: 9,
            state_bytes: 40,
            missing_count: 65,
            root: Root([4; 32]),
        }),
        Message::Ready(Root([4; 32])),
        Message::Commit(Epoch(4), Root([4; 32])),
        Message::Ack(300),
        Message::Nack(reason.clone()),
        Message::Abort(reason),
        Message::Complete,
        Message::Released,
        Message::Demand(SpaceId(1), 77),
        Message::Ping(1),
        Message::Pong(u64::MAX),
        Message::Mark(Epoch(4)),
    ]
}

/// Blocks that are zero, plain and random by turns.
struct Blocks;

impl BlockReader for Blocks {
    fn read_runs(&self, _: SpaceId, runs: &[BlockRun], out: &mut [u8]) -> Result<(), Fault> {
        let blocks = runs.iter().flat_map(|run| run.start..run.end());
        let mut state = 1_u32;
        for (block, bytes) in blocks.zip(out.chunks_mut(4096)) {
            for (index, byte) in (0_u8..=250).cycle().zip(bytes) {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                *byte = match block % 3 {
                    0 => 0,
                    1 => index / 9,
                    _ => state.to_be_bytes()[0],
                };
            }
        }
        Ok(())
    }
}

/// A chunk of each kind, packed by our own encoder.
fn chunks() -> Vec<Vec<u8>> {
    let mut encoder = Encoder::new().expect("the encoder has its memory");
    let mut chunk = EncodedChunk::new();
    let mut frames = Vec::new();
    let run = |start, count| BlockRun { start, count };
    for (level, runs) in [
        (Level::Raw, &[run(1, 1)][..]),
        (Level::Lz4, &[run(1, 1), run(4, 1)]),
        (Level::Zstd3, &[run(1, 1), run(7, 1)]),
        (Level::Zstd1, &[run(0, 3)]),
    ] {
        let job = Job::new(MEMORY, 4096, 1, runs).expect("a job");
        let take = |chunk: &EncodedChunk| {
            frames.push(chunk.frame().to_vec());
            Ok(())
        };
        let packed = encoder.encode_urgent(&Blocks, &job, level, &mut chunk, take);
        packed.expect("these blocks can be read");
    }
    frames
}

const fn had(bytes: u64) -> link::Received {
    link::Received {
        bytes,
        is_ended: false,
    }
}

fn preambles() -> Vec<Preamble> {
    vec![
        Preamble::Open(Open {
            peer: name("region"),
            service: name("migrator"),
            class: Class::ALL[0],
        }),
        Preamble::Opened(host("box-2")),
        Preamble::Refused(Fault::new(Code::Unreachable, "no link to region")),
        Preamble::Accepted(Accepted {
            peer: host("box-1"),
            service: name("migrator"),
            class: Class::ALL[3],
        }),
        Preamble::Join(Join {
            versions: VERSIONS,
            link: LinkId(7),
            leg: Leg::Urgent,
            receive_rate_max: Some(12_500_000),
            run: RunId(8),
        }),
        Preamble::Joined(Joined {
            version: 2,
            receive_rate_max: None,
            run: RunId(9),
        }),
        Preamble::Begin(Begin {
            stream: StreamId(3),
            open: Open {
                peer: name("region"),
                service: name("till"),
                class: Class::App,
            },
            is_datagrams: false,
        }),
        Preamble::Resume(Resume {
            stream: StreamId(3),
            received: had(1 << 20),
        }),
        Preamble::Resumed(had(700)),
        Preamble::Reports(vec![
            Report {
                stream: StreamId(3),
                received: had(9),
            },
            Report {
                stream: StreamId(4),
                received: had(0),
            },
        ]),
        Preamble::Cut(Cut {
            stream: StreamId(3),
            fault: Fault::new(Code::Gone, "the local program is gone"),
        }),
        Preamble::Path(PathReport {
            receive_rate_max: None,
            filled_bytes_per_second: Some(12_500_000),
        }),
    ]
}

fn guest_api() -> Vec<Vec<u8>> {
    let requests = [
        Request::Hello { versions: VERSIONS },
        Request::Describe,
        Request::TakeMemory,
        Request::StartTracking,
        Request::Harvest {
            first_block: 64,
            block_count: 1000,
        },
        Request::Pause,
        Request::SaveState,
        Request::ReadState { offset: 60 * 1024 },
        Request::WriteState {
            offset: 0,
            bytes: vec![5; 100],
        },
        Request::ArmMissing,
        Request::Run { epoch: Epoch(3) },
        Request::Quit,
    ];
    let responses = [
        Response::Welcome {
            version: 1,
            process_id: 4711,
        },
        Response::Memory { bytes: 1 << 30 },
        Response::Done,
        Response::Harvested {
            first_block: 64,
            words: vec![1, u64::MAX],
        },
        Response::Paused { stopped_at_ns: 99 },
        Response::StateSaved { bytes: 8192 },
        Response::StatePart {
            offset: 0,
            bytes: vec![6; 50],
        },
        Response::Armed {
            regions: vec![Region {
                address: 0x7f00_0000_0000,
                bytes: 1 << 20,
                memory_offset: 0,
            }],
        },
        Response::Running {
            epoch: Epoch(3),
            running_since_ns: 5,
        },
        Response::Failed(Reason {
            code: "E_STATE".to_owned(),
            detail: "it runs already".to_owned(),
        }),
    ];
    let requests = requests.iter().map(|request| {
        let mut packet = Vec::new();
        request.encode(1, &mut packet);
        packet
    });
    let responses = responses.iter().map(|response| {
        let mut packet = Vec::new();
        response.encode(1, &mut packet);
        packet
    });
    requests.chain(responses).flat_map(dressed).collect()
}

fn records() -> Vec<Vec<u8>> {
    let origin = Origin {
        attempt: AttemptId(8),
        source: host("box-1"),
    };
    let verdict = Verdict {
        origin: origin.clone(),
        epoch: Epoch(2),
        is_taken: true,
    };
    let states = [
        State::Vacant,
        State::Owned {
            epoch: Epoch(2),
            missing_from: Some(origin.clone()),
        },
        State::Prepared {
            epoch: Epoch(3),
            attempt: origin.attempt,
            source: origin.source,
        },
    ];
    let records = states.map(|state| {
        let record = Record {
            guest: GuestId(1),
            high_water: Epoch(3),
            decider: Decider::SourceJournal,
            state,
            verdicts: vec![verdict.clone()],
        };
        record.encode()
    });
    let files = records
        .iter()
        .map(|record| plain(&crate::journal_of(record)));
    let bare = records
        .iter()
        .map(|record| [&[IN_A_FRAME], &record[..]].concat());
    files.chain(bare).collect()
}

fn configs() -> Vec<Vec<u8>> {
    let migrator = "trust_domain = \"shop.example\"\nsite = \"edge\"\nhost = \"box-1\"\n\
        state_dir = \"/var/lib/towpath/migrator\"\n[quota]\nmemory = \"8GiB\"\n";
    let tunnel = "site = \"edge\"\nhost = \"box-1\"\nlisten = \"[::]:4433\"\n\
        socket = \"/run/towpath/tunnel.sock\"\n\
        [[peers]]\nsite = \"region\"\naddress = \"192.0.2.1:4433\"\nsend_rate = \"100Mbit\"\n\
        [[services]]\nname = \"migrator\"\nsocket = \"/run/towpath/migrator-service.sock\"\n\
        allow = [\"region\"]\n\
        [admin]\nsocket = \"/run/towpath/tunnel-admin.sock\"\n\
        [certificates]\ncert = \"/a\"\nkey = \"/b\"\nca = \"/c\"\n";
    let json =
        br#"{"guest":"till-7","site":"region","mode":"auto","max_pause_ms":[200,{"a":null}]}"#;
    vec![
        plain(migrator.as_bytes()),
        plain(tunnel.as_bytes()),
        [&[IN_A_FRAME], &json[..]].concat(),
    ]
}

fn requests() -> Vec<Vec<u8>> {
    let bodies: [&[u8]; 6] = [
        br#"{"name":"till","listen":"tcp:127.0.0.1:7001","peer":"region","service":"till","class":"demand","generation":7,"expires_unix_seconds":1900000000,"cap":"10Mbit"}"#,
        br#"{"send_timetable":"50Mbit 09:00-17:00 mon-fri, 200Mbit otherwise","receive_rate":"100Mbit","shares":{"app":{"weight":9,"floor":"5Mbit"},"bulk":{"cap":"80Mbit"}}}"#,
        br#"{"cap":"10Mbit"}"#,
        br#"{"bytes":4194304,"time_ms":2000}"#,
        br#"{"name":"till-7","kind":"process","memory_bytes":67108864,"dirty_pages_per_second":9,"working_set_bytes":8192,"incompressible_percent":50,"heartbeat_interval_us":20000}"#,
        br#"{"guest":"till-7","site":"region","mode":"auto","max_pause_ms":200,"rate":1000000}"#,
    ];
    let numbered = (0..).zip(bodies);
    numbered
        .map(|(kind, body)| [&[IN_A_FRAME, kind], body].concat())
        .collect()
}

fn packets() -> Vec<Vec<u8>> {
    // A long header of version 1: an Initial with connection IDs of 8 and 0 bytes, no token, and
    // its length.
    let mut initial = vec![
        0xc3, 0, 0, 0, 1, 8, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0x44, 0x9e,
    ];
    initial.resize(1200, 0x5a);
    let mut handshake = initial.clone();
    handshake[0] = 0xe3;
    let mut version = initial.clone();
    version[4] = 9;
    let short = [&[0x41][..], &[7; 40]].concat();
    let mut announced = vec![40, 0, 0, 0, 20, 0];
    announced.resize(40, 1);
    announced.extend_from_slice(&[16, 0, 0, 0, 24, 0]);
    announced.resize(56, 2);
    let packets = [initial, handshake, version, short];
    packets
        .iter()
        .map(|packet| plain(packet))
        .chain([[&[IN_A_FRAME], &announced[..]].concat()])
        .collect()
}

fn certificates() -> Vec<Vec<u8>> {
    let (ders, ..) = trust::ders();
    ders.iter()
        .map(|der| [&[IN_A_FRAME], &der[..]].concat())
        .chain([plain(trust::HOST_PEM.as_bytes())])
        .collect()
}

fn revocations() -> Vec<Vec<u8>> {
    let (_, der, _) = trust::ders();
    let pem = trust::pem("X509 CRL", &der);
    vec![
        plain(trust::LIST_PEM.as_bytes()),
        [&[IN_A_FRAME], &der[..]].concat(),
        plain(&pem),
    ]
}

fn channels() -> Vec<Vec<u8>> {
    let entry = |name: &str, end: &str| {
        format!(
            r#"{{"name":"{name}","generation":7,"spec":{{"name":"{name}","listen":"unix:/run/{name}.sock","peer":"region","service":"till","class":"app","generation":7,"expires_unix_seconds":{end},"cap":"10Mbit"}}}}"#
        )
    };
    let removed = r#"{"name":"gone","generation":18446744073709551615,"spec":null}"#.to_owned();
    let register = |entries: &[String]| {
        let known = entries.join(",");
        let text = format!(r#"{{"schema":"towpath.v1.channel-register","known":[{known}]}}"#);
        plain(text.as_bytes())
    };
    vec![
        register(&[]),
        register(&[entry("till", "null")]),
        register(&[entry("till", "1900000000"), removed, entry("other", "1")]),
    ]
}

/// Histories of some hours, some of them long ago, and an empty one.
fn histories() -> Vec<Vec<u8>> {
    let mut history = History::default();
    let mut histories = vec![history.encode()];
    for (hour, sample) in [
        (0, Sample::Capacity(1e6)),
        (1, Sample::ApplicationLimited(2e5)),
        (2, Sample::CapLimited(3e6)),
        (5, Sample::Down),
        (29, Sample::Capacity(2e6)),
        (400, Sample::Capacity(1e9)),
    ] {
        let at = Moment::from_unix_seconds(1_750_000_000 + hour * 3600);
        history.observe(at, sample, 300);
        histories.push(history.encode());
    }
    let dressed = |whole: &Vec<u8>| [&[IN_A_FRAME], &whole[..whole.len() - 4]].concat();
    let all: Vec<_> = histories.iter().map(dressed).collect();
    histories
        .iter()
        .map(|whole| plain(whole))
        .chain(all)
        .collect()
}

fn received() -> Vec<Vec<u8>> {
    let memory = Geometry::new(4096, 4096).expect("a geometry");
    let volume = Geometry::new(65536, 64).expect("a geometry");
    let files = [&[memory][..], &[memory, volume]].map(|spaces| {
        let mut file = tempfile::tempfile().expect("a file");
        let bytes = ReceivedFile::file_bytes(spaces).expect("spaces");
        file.set_len(bytes).expect("it grows");
        let marks = file.try_clone().expect("another handle");
        let mut marks = ReceivedFile::create(marks, AttemptId(8), spaces).expect("it is made");
        let run = |start, count| BlockRun { start, count };
        marks.insert_run(MEMORY, run(3, 700)).expect("in range");
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(0)).expect("it is a file");
        file.read_to_end(&mut bytes).expect("it reads");
        bytes
    });
    let dressed = files
        .iter()
        .map(|bytes| [&[IN_A_FRAME], &bytes[..]].concat());
    let mut all: Vec<_> = dressed.collect();
    all.extend(files.iter().map(|bytes| plain(bytes)));
    all
}

fn guest_states() -> Vec<Vec<u8>> {
    let state = |sections: &[(u16, u16, usize)]| {
        let mut bytes = b"TPGS\x01\0".to_vec();
        let count = u16::try_from(sections.len()).expect("few");
        bytes.extend(count.to_le_bytes());
        for (kind, version, length) in sections {
            bytes.extend(kind.to_le_bytes());
            bytes.extend(version.to_le_bytes());
            bytes.extend(u32::try_from(*length).expect("short").to_le_bytes());
            bytes.resize(bytes.len() + length, 7);
        }
        plain(&bytes)
    };
    vec![
        state(&[]),
        state(&[(1, 1, 32), (2, 1, 11)]),
        state(&[(16, 1, 144), (17, 1, 312), (18, 1, 4096), (22, 1, 800)]),
    ]
}
