"""The training text: each source as a list of documents."""

import gzip
import json
import re


def detokenise(text):
    """Undo the WikiText tokenisation: spaces around punctuation, ` @-@ ` and the like."""
    text = re.sub(r" @([-,.])@ ", r"\1", text)
    text = re.sub(r' " ([^"\n]*?) " ', r' "\1" ', f" {text} ")
    text = re.sub(r"([(\[]) ", r"\1", text)
    text = re.sub(r" ([)\]])", r"\1", text)
    text = re.sub(r" ([.,;:!?%]+)(?=\s|\"|$)", r"\1", text)
    text = re.sub(r" '(s|t|re|ve|m|ll|d)\b", r"'\1", text)
    text = re.sub(r"([$£€]) (?=\d)", r"\1", text)
    text = re.sub(r"(?<=\d) – (?=\d)", "–", text)
    text = re.sub(r"(\w) '(?=\s)", r"\1'", text)
    text = re.sub(r'(?<=\S) "([.,;:!?])', r'"\1', text)
    text = re.sub(r"\(\s*[,;]?\s*\)", "", text)
    return re.sub(r" {2,}", " ", text).strip()


def wikitext_documents(path):
    """Split the WikiText training file at its ` = Title = ` headings.

    Returns pairs: the article as natural text and the article as it stands,
    with the file's own spacing.  The `<unk>` marks are taken out of both.
    """
    articles = [[]]
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            if re.match(r" = [^=].* = $", line):
                articles.append([])
            articles[-1].append(line.replace("<unk> ", ""))
    pairs = []
    for article in filter(None, ("".join(lines).strip(" \n") for lines in articles)):
        natural = []
        for line in article.split("\n"):
            heading = re.fullmatch(r"\s*((?:= )+)(.*?) \1?(?:= ?)+", line)
            natural.append(detokenise(heading.group(2) if heading else line))
        pairs.append(("\n".join(filter(None, natural)), f" {article} \n"))
    return pairs


def moby_dick_documents(path):
    """Return the chapters, without the publisher's header, footer and line wrapping."""
    text = path.read_text(encoding="utf-8-sig").replace("\r\n", "\n")
    text = re.split(r"\*\*\* ?(?:START|END) OF TH[^\n]*\n", text)[1]
    chapters = re.split(r"\n(?=CHAPTER \d+\.|Epilogue)", text)
    documents = []
    for chapter in chapters:
        paragraphs = re.split(r"\n{2,}", chapter)
        documents.append("\n".join(" ".join(p.split()) for p in paragraphs if p.strip()))
    return [document for document in documents if len(document) > 400]


def shakespeare_documents(path, size=4000):
    """Return runs of whole speeches, each of about `size` characters."""
    documents, current = [], ""
    for speech in path.read_text(encoding="utf-8").split("\n\n"):
        current += speech.strip() + "\n\n"
        if len(current) >= size:
            documents.append(current.strip())
            current = ""
    return documents + [current.strip()]


def c4_documents(path):
    """Return the `text` field of each line of a gzipped JSON-lines file."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line)["text"].strip() for line in lines]


def load_corpus(text_folder):
    """Return all training documents as (natural form, spaced form or None) pairs."""
    documents = wikitext_documents(text_folder / "wikitext-2.train.tokens.txt")
    plain = moby_dick_documents(text_folder / "moby-dick_2701-0.txt")
    plain += shakespeare_documents(text_folder / "tinyshakespeare.txt")
    plain += c4_documents(text_folder / "c4-sample.00000-of-00001.json.gz")
    return documents + [(document, None) for document in plain if document]
