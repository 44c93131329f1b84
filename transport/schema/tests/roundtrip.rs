//! What goes into a batch comes out again: random events of every kind, through the wire and back.

mod support;

use std::sync::Arc;

use proptest::prelude::*;
use support::{by_kind, config, decode, events, frame_of, host, kinds_of};
use weir_schema::{
    BatchBuilder, Column, Epoch, Event, Fields, Frame, Home, Host, Kind, Lane, Refused, Seq, Text, frame_len, limits,
};

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_batch_reads_back_equal(host in host(), (lane, pushed) in proptest::sample::select(&Lane::ALL[..])
        .prop_flat_map(|lane| (Just(lane), events(kinds_of(lane), 60)))) {
        let frame = frame_of(&host, lane, &pushed);
        prop_assert_eq!(Frame::parse(&frame.bytes), Ok(frame.clone()));
        prop_assert_eq!(frame_len(&frame.bytes), Ok(Some(frame.bytes.len())));
        let batch = decode(&frame).unwrap();
        prop_assert_eq!(&batch.host, &host);
        prop_assert!(batch.skipped.is_empty());
        let mut seq = batch.header.first_seq;
        for section in &batch.sections {
            prop_assert_eq!(section.first_seq, seq);
            seq = Seq(seq.0 + section.rows() as u64);
        }
        prop_assert_eq!(seq, batch.header.end_seq());
        prop_assert_eq!(batch.events(), by_kind(pushed));
    }

    /// Columns brought to the rows of a section are what the events say.
    #[test]
    fn columns_say_what_events_say(host in host(), pushed in events(kinds_of(Lane::Network), 40)) {
        let batch = decode(&frame_of(&host, Lane::Network, &pushed)).unwrap();
        let events = batch.events();
        let mut at = 0;
        for section in &batch.sections {
            for row in 0..section.rows() {
                let event = &events[at];
                at += 1;
                let check = |column: Column, cell: Option<weir_schema::Cell<'_>>| {
                    let codes = batch.codes(section, column).map(|codes| codes[row]).filter(|code| *code != 0);
                    let int = batch.ints(section, column).and_then(|ints| ints.get(row));
                    match cell {
                        Some(weir_schema::Cell::Text(text)) => assert_eq!(codes.map(|code| batch.strings.text(code)), Some(&**text)),
                        Some(weir_schema::Cell::Int(value)) => assert_eq!(int, Some(value)),
                        None => assert_eq!((codes, int), (None, None), "{column:?}"),
                    }
                };
                let mut known = vec![Column::Time, Column::Pid, Column::StartNs];
                let mut found = |column, cell: weir_schema::Cell<'_>| { known.push(column); check(column, Some(cell)); };
                event.fields.each(&mut found);
                if let Some(process) = &event.process { process.each(&mut found); }
                if let Some(container) = &event.container { container.each(&mut found); }
                let stored = |c: &&Column| matches!(c.home(), Home::Event | Home::Process | Home::Container);
                Column::ALL.iter().filter(stored).filter(|c| !known.contains(c)).for_each(|c| check(*c, None));
            }
        }
    }
}

#[test]
fn a_full_builder_refuses_and_its_frame_keeps_every_limit() {
    let large: Text = "y".repeat(limits::STRING_BYTES_MAX).into();
    type Make = fn(u64, &Text) -> Fields;
    let cases: [(&str, Make); 3] = [
        ("nothing but time", |_, _| Fields::default()),
        ("new text each", |n, _| Fields { path: Some(n.to_string().into()), ..Fields::default() }),
        ("large texts", |n, large| Fields { path: Some(format!("{n}{large}").into()), ..Fields::default() }),
    ];
    for (name, fields) in cases {
        let mut builder = BatchBuilder::new(Arc::new(Host::default()), Epoch(1), Lane::File, Seq(0));
        let mut pushed = 0u64;
        let refused = loop {
            let event =
                Event { time: pushed as i64 * 1_000, kind: Kind::Open, fields: fields(pushed, &large), ..Event::default() };
            match builder.push(&event) {
                Ok(()) => pushed += 1,
                Err(refused) => break refused,
            }
        };
        assert_eq!(refused, Refused::Full, "{name}");
        assert!(pushed > 100, "{name}: full after {pushed}");
        let frame = builder.finish().unwrap();
        assert!(frame.bytes.len() <= limits::FRAME_BYTES_MAX, "{name}");
        assert_eq!(decode(&Frame::parse(&frame.bytes).unwrap()).unwrap().rows() as u64, pushed, "{name}");
        assert_eq!(builder.next_seq(), Seq(pushed), "{name}");
        assert!(builder.is_empty() && builder.finish().is_err(), "{name}");
    }
}

#[test]
fn a_long_text_is_cut_at_a_character_and_counted() {
    let path: Text = "ä".repeat(limits::STRING_BYTES_MAX).into();
    let event = Event { kind: Kind::Open, fields: Fields { path: Some(path), ..Fields::default() }, ..Event::default() };
    let mut builder = BatchBuilder::new(Arc::new(Host::default()), Epoch(1), Lane::File, Seq(0));
    builder.push(&event).unwrap();
    assert_eq!(builder.texts_cut(), 1);
    let events = decode(&builder.finish().unwrap()).unwrap().events();
    let path = events[0].fields.path.clone().unwrap();
    assert!(path.len() <= limits::STRING_BYTES_MAX && path.len() > limits::STRING_BYTES_MAX - 4, "{}", path.len());
    assert!(path.ends_with("ä…"));
}

#[test]
fn an_event_of_another_lane_is_refused() {
    let mut builder = BatchBuilder::new(Arc::new(Host::default()), Epoch(1), Lane::File, Seq(0));
    assert_eq!(builder.push(&Event { kind: Kind::Exec, ..Event::default() }), Err(Refused::WrongLane));
    assert!(builder.is_empty());
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_line_reads_back_equal(host in host(), mut event in events(Kind::ALL.to_vec(), 2)) {
        let mut event = event.remove(0);
        event.container = event.container.filter(|container| **container != weir_schema::Container::default());
        let name = weir_schema::Name::new("eu-west-1").unwrap();
        let line = weir_schema::JsonEvent { host, tenant: None, region: Some(name.clone()), agent: Some(name), event };
        let mut text = String::new();
        weir_schema::write_line(&mut text, &line);
        prop_assert_eq!(text.matches('\n').count(), 1);
        prop_assert_eq!(weir_schema::parse_line(&text).map_err(|e| TestCaseError::fail(format!("{e}: {text}")))?, line);
    }

    #[test]
    fn any_text_is_an_event_or_an_error(text in any::<String>()) {
        _ = weir_schema::parse_line(&text);
        _ = weir_schema::parse_time(&text);
    }
}
