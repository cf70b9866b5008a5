//! Tests of the copy between a program and a carrier.

use tokio::sync::oneshot;

use super::*;

#[tokio::test]
async fn a_program_that_pauses_holds_the_windows_memory_for_as_long_as_a_stream_may_be_stuck() {
    for is_patient in [false, true] {
        let settings = Settings {
            pool: Arc::default(),
            stall: Duration::from_millis(1),
            is_patient,
            tail_bytes: 0,
        };
        let waiting = Arc::new(());
        let said = Arc::downgrade(&waiting);
        let (go_on, pause) = oneshot::channel::<()>();
        let program = pin!(pause);
        let resumes = async {
            while said.strong_count() > 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            go_on.send(())
        };
        let both = async { tokio::join!(wait_long(program, &settings, waiting), resumes) };
        let (written, _) = timeout(Duration::from_secs(10), both)
            .await
            .expect("it says for ever that it waits");
        assert_eq!(written.is_ok(), is_patient);
    }
}
