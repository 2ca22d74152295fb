//! Asks a DNS server for the address of a name, over TCP.
//!
//! Only tells whether names are answered: CoreDNS says that it is ready on a port of its own, which proves nothing about
//! the one that pods ask.

use {
    crate::network::Network,
    anyhow::{Context, bail, ensure},
    std::{
        io::{Read, Write},
        net::SocketAddr,
        time::Duration,
    },
};

/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(5);

/// Of a header: an identifier, a question, recursion desired, one question.
const HEADER: [u8; 12] = [0x4f, 0x41, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];

/// Asks for a name's IPv4 address; an error when there is none.
pub(crate) fn look_up(network: &Network, server: SocketAddr, name: &str) -> anyhow::Result<()> {
    let mut stream = network.connect(server)?;
    stream.set_read_timeout(Some(ANSWER))?;
    stream.set_write_timeout(Some(ANSWER))?;
    let question = question(name)?;
    stream.write_all(&u16::try_from(question.len())?.to_be_bytes())?;
    stream.write_all(&question)?;
    let mut length = [0; 2];
    stream
        .read_exact(&mut length)
        .with_context(|| format!("{server} does not answer"))?;
    let mut answer = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut answer)?;
    check(&answer, name)
}

fn question(name: &str) -> anyhow::Result<Vec<u8>> {
    let mut question = HEADER.to_vec();
    for label in name.trim_end_matches('.').split('.') {
        ensure!((1..=63).contains(&label.len()), "{name} is no name");
        question.push(u8::try_from(label.len())?);
        question.extend(label.as_bytes());
    }
    // The root, type A, class IN.
    question.extend([0, 0, 1, 0, 1]);
    Ok(question)
}

fn check(answer: &[u8], name: &str) -> anyhow::Result<()> {
    let (Some(identifier), Some(&[_, flags, _, _, high, low])) = (answer.get(..2), answer.get(2..8)) else {
        bail!("the answer for {name} is too short");
    };
    ensure!(identifier == &HEADER[..2], "the answer is to another question");
    match (flags & 0xf, u16::from_be_bytes([high, low])) {
        (0, 1..) => Ok(()),
        (0, 0) => bail!("{name} has no address"),
        (3, _) => bail!("{name} is not known"),
        (code, _) => bail!("the answer for {name} is error {code}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_labels_with_their_lengths() {
        let asked = question("a.example").unwrap();
        assert_eq!(asked[12..], *b"\x01a\x07example\0\0\x01\0\x01");
        assert!(question("a..b").is_err());
        assert!(question(&"a".repeat(64)).is_err());
    }

    #[test]
    fn an_answer_has_an_address_or_says_why_not() {
        #[track_caller]
        fn expect(answer: &[u8], expected: Result<(), &str>) {
            let found = check(answer, "x").map_err(|error| error.to_string());
            assert_eq!(found, expected.map_err(str::to_owned));
        }
        let answer = |code: u8, count: u8| [0x4f, 0x41, 0x85, 0x80 | code, 0, 1, 0, count, 0, 0, 0, 0];
        expect(&answer(0, 1), Ok(()));
        expect(&answer(0, 0), Err("x has no address"));
        expect(&answer(3, 0), Err("x is not known"));
        expect(&answer(2, 0), Err("the answer for x is error 2"));
        expect(&[0x4f], Err("the answer for x is too short"));
        expect(&[0; 12], Err("the answer is to another question"));
    }
}
