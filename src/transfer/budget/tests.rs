use std::time::Duration;

use proptest::prelude::*;

use super::*;

const MIB: usize = 1 << 20;
/// As long as a line may be: what it takes is twice as much.
const MOST: usize = 16 * MIB;

/// Whether it still waits when all has been done that needs no time.
async fn waits(future: &mut (impl Future<Output = ()> + Unpin)) -> bool {
    let waited = tokio::time::timeout(Duration::from_millis(1), future).await;
    waited.is_err()
}

#[tokio::test(start_paused = true)]
async fn lines_wait_where_none_could_come_to_its_end_otherwise() {
    let budget = UploadBudget::of(64 * MIB);
    let [a, b, c] = [(); 3].map(|()| budget.part("one", MOST));
    a.grow(12 * MIB).await;
    b.grow(12 * MIB).await;
    assert_eq!(budget.held(), 48 * MIB);
    // 16 MiB are left, and one of the two needs 8 more.
    let mut third = Box::pin(c.grow(5 * MIB));
    assert!(waits(&mut third).await);
    a.grow(MOST).await;
    assert!(waits(&mut third).await, "{budget:?}");
    a.give_back();
    assert!(!waits(&mut third).await, "{budget:?}");
    assert_eq!(budget.held(), 34 * MIB);
    drop(third);
    drop((a, b, c));
    assert_eq!(budget.held(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_tenant_with_much_lets_others_go_first() {
    let budget = UploadBudget::of(64 * MIB);
    let [first, second, third] = [(); 3].map(|()| budget.part("much", MOST));
    first.grow(8 * MIB).await;
    second.grow(12 * MIB).await;
    // 24 MiB are left, and 8 of them are for the second line's end.
    let mut more = Box::pin(third.grow(9 * MIB));
    assert!(waits(&mut more).await);
    let other = budget.part("little", MOST);
    let mut others = Box::pin(other.grow(9 * MIB));
    assert!(waits(&mut others).await);
    first.give_back();
    // There is room for either; the one that came later has its turn.
    assert!(!waits(&mut others).await, "{budget:?}");
    assert!(waits(&mut more).await);
    other.give_back();
    assert!(!waits(&mut more).await, "{budget:?}");
}

#[tokio::test(start_paused = true)]
async fn a_line_that_is_alone_has_room_however_long_it_is() {
    let budget = UploadBudget::of(MIB);
    let alone = budget.part("one", MOST);
    alone.grow(MOST).await;
    assert_eq!(budget.held(), 2 * MOST);
    let other = budget.part("one", MOST);
    let mut next = Box::pin(other.grow(MOST));
    assert!(waits(&mut next).await);
    drop(alone);
    assert!(!waits(&mut next).await, "{budget:?}");
}

#[tokio::test(start_paused = true)]
async fn who_gives_up_waiting_is_forgotten() {
    let budget = UploadBudget::of(64 * MIB);
    let [a, b, c] = [(); 3].map(|()| budget.part("one", MOST));
    a.grow(MOST).await;
    b.grow(MOST).await;
    let mut third = Box::pin(c.grow(MOST));
    assert!(waits(&mut third).await);
    assert!(!waits(&mut Box::pin(a.is_needed())).await);
    drop(third);
    assert!(
        waits(&mut Box::pin(a.is_needed())).await,
        "nobody waits any more"
    );
    drop(a);
    assert_eq!(budget.held(), 2 * MOST);
}

#[tokio::test(start_paused = true)]
async fn hashes_never_take_the_room_of_lines() {
    let budget = UploadBudget::of(64 * MIB);
    let mut files: Vec<Hashes> = (0..60).map(|_| budget.hashes()).collect();
    let granted = files
        .iter_mut()
        .filter_map(|file| file.may_hold(4 * MIB).then_some(()));
    assert_eq!(granted.count(), 4, "a quarter");
    assert!(files[0].may_hold(MIB), "what they have they keep");
    let [a, b] = [(); 2].map(|()| budget.part("one", MOST));
    a.grow(MOST).await;
    b.grow(7 * MIB).await;
    drop(files);
    // While a line waits, nothing goes to hashes; nor if no line could end then.
    let mut more = budget.hashes();
    assert!(!more.may_hold(16 * MIB + 1));
    let c = budget.part("one", MOST);
    let mut third = Box::pin(c.grow(10 * MIB));
    assert!(waits(&mut third).await);
    assert!(!more.may_hold(1));
    drop(a);
    assert!(!waits(&mut third).await, "{budget:?}");
    assert!(more.may_hold(MIB));
}

proptest! {
    /// Whatever lines come and how long they get, all come to their end, and together they never
    /// hold more than there is.
    #[test]
    fn all_lines_come_to_their_end(
        lengths in proptest::collection::vec((1_usize..=16, 0_usize..4), 1..40),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let budget = UploadBudget::of(64 * MIB);
            let lines = lengths.iter().map(|(length, tenant)| {
                let part = budget.part(&tenant.to_string(), MOST);
                let budget = &budget;
                async move {
                    for length in 1..=*length {
                        part.grow(length * MIB).await;
                        assert!(budget.held() <= 64 * MIB, "{budget:?}");
                        tokio::task::yield_now().await;
                    }
                }
            });
            let all = futures::future::join_all(lines);
            let ended = tokio::time::timeout(Duration::from_secs(1), all).await;
            assert!(ended.is_ok(), "{budget:?}");
            assert_eq!(budget.held(), 0);
        });
    }
}
