//! Tests of sorting: every row once, in order, whatever the hashes are like.

use proptest::prelude::*;

use super::*;

fn rows(hashes: impl IntoIterator<Item = u64>) -> Vec<HashedRow> {
    let row = |(slot, hash)| HashedRow { hash, row: RowRef { segment: slot % 3, slot } };
    (0_u32..).zip(hashes).map(row).collect()
}

/// What is handed out, part by part, with the rows in the order of their places.
fn sorted(rows: &[HashedRow]) -> Vec<Vec<HashedRow>> {
    let mut parts = Vec::new();
    let list = |show: Show<'_>| rows.chunks(1000).for_each(show);
    sort(&list, (survey(&list), 0), &mut |_| Ok(()), &mut |Part { hashes, placed, .. }| {
        assert!(!hashes.is_empty() && hashes.len() <= BLOCK_ROWS);
        assert!(hashes.is_sorted());
        let mut ordered = vec![None; hashes.len()];
        for (row, &place) in placed.rows.iter().zip(placed.places) {
            assert_eq!(ordered[place as usize].replace(*row), None);
            assert_eq!(hashes[place as usize], row.hash);
        }
        parts.push(ordered.into_iter().map(Option::unwrap).collect());
        Ok(())
    })
    .unwrap();
    parts
}

fn check(hashes: impl IntoIterator<Item = u64>) -> usize {
    let all = rows(hashes);
    let parts = sorted(&all);
    let mut expected = all;
    expected.sort_by_key(|row| row.hash);
    assert!(parts.concat() == expected, "rows of equal hashes keep their order");
    parts.len()
}

fn spread(number: u64) -> u64 {
    number.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

#[test]
fn rows_come_in_the_order_of_their_hashes_and_parts_are_well_filled() {
    let count = 5 * BLOCK_ROWS as u64;
    let parts = check((0..count).map(spread));
    assert!((5..=6).contains(&parts), "{parts}");
    // Those of one of many subtasks, from a narrow range.
    let parts = check((0..count).map(|number| spread(number) >> 12 | 5 << 60));
    assert!((5..=6).contains(&parts), "{parts}");
}

#[test]
fn more_rows_than_are_kept_at_once_are_listed_again_for_each_stretch() {
    let count = 3 * (STRETCH_BYTES / ROW_BYTES) as u64;
    let listings = std::cell::Cell::new(0);
    let all = rows((0..count).map(spread));
    let list = |show: Show<'_>| {
        listings.set(listings.get() + 1);
        all.chunks(4096).for_each(show);
    };
    let (mut last, mut seen) = (0, 0);
    sort(&list, (survey(&list), 0), &mut |_| Ok(()), &mut |Part { hashes, .. }| {
        assert!(hashes.is_sorted() && last <= hashes[0]);
        (last, seen) = (hashes[hashes.len() - 1], seen + hashes.len() as u64);
        Ok(())
    })
    .unwrap();
    assert_eq!(seen, count);
    assert!((5..=6).contains(&listings.get()), "{} listings", listings.get());
}

#[test]
fn hashes_that_are_alike_or_close_to_one_another_are_sorted_too() {
    assert_eq!(check([]), 0);
    assert_eq!(check([7, 3]), 1);
    assert_eq!(check([0, u64::MAX]), 1);
    assert_eq!(check([u64::MAX]), 1);
    let many = 2 * BLOCK_ROWS + 1;
    assert_eq!(check(vec![u64::MAX; many]), 3);
    assert_eq!(check(vec![0; many]), 3);
    // One hot key among others, and two next to one another.
    let hot = |number: usize| if number.is_multiple_of(3) { spread(number as u64) } else { 1 << 40 };
    assert!(check((0..3 * many).map(hot)) >= 6);
    assert!(check((0..many as u64).map(|number| (1 << 40) + number % 2)) >= 3);
    assert!(check((0..many as u64).map(|number| if number == 5 { 0 } else { u64::MAX - number % 2 })) >= 3);
}

#[test]
fn an_error_ends_it() {
    for hashes in [vec![1; 3 * BLOCK_ROWS], (0..3 * BLOCK_ROWS as u64).map(spread).collect()] {
        let all = rows(hashes);
        let mut calls = 0;
        let list = |show: Show<'_>| all.chunks(1000).for_each(show);
        let error = sort(&list, (survey(&list), 0), &mut |_| Ok(()), &mut |_| {
            calls += 1;
            Err(weir_types::Error::internal("no"))
        });
        assert_eq!((error.unwrap_err().message.as_str(), calls), ("no", 1));
    }
}

proptest! {
    #[test]
    fn any_hashes_are_sorted(hashes in prop::collection::vec(any::<u64>(), 0..300), shift in 0_u32..64) {
        check(hashes.iter().map(|hash| hash >> shift));
        check(hashes.iter().map(|hash| u64::MAX - (hash >> shift)));
    }
}

#[test]
fn what_sorting_holds_is_told_before_and_bounded_by_a_part_of_the_table() {
    let count = (2 * STRETCH_BYTES / ROW_BYTES) & !4095;
    let list = |show: Show<'_>| {
        for chunk in 0..count / 4096 {
            let numbers = (chunk * 4096) as u64..(chunk * 4096 + 4096) as u64;
            show(&rows(numbers.map(spread)));
        }
    };
    let mut most = 0;
    let mut hold = |bytes: usize| {
        most = most.max(bytes);
        Ok(())
    };
    sort(&list, (survey(&list), 0), &mut hold, &mut |_| Ok(())).unwrap();
    assert!((STRETCH_BYTES / 2..STRETCH_BYTES + (4 << 20)).contains(&most), "{most}");
    let full = Err(weir_types::Error::internal("full"));
    let error =
        sort(&list, (survey(&list), 0), &mut |_| full.clone(), &mut |_| panic!("it was not refused")).unwrap_err();
    assert_eq!(error.message, "full");
}
