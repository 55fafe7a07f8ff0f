"""Words of captions as the COCO caption evaluation counts them: what the Stanford PTB tokenizer 3.4.1 with lower case
makes of a line, less its punctuation. Written from what that program does to 25,554 captions of COCO and to made-up
lines; equal to it on those (tests/scores/test_ptb.py).

Like the original it takes the longest token that begins where the last one ended. Not followed: rare signs (`_KEPT`
holds the blocks of those that stay), letters beyond Unicode's first plane, long rows of figures.
"""

import re
import unicodedata

# Dropped after tokenizing. Brackets are named in capitals there, so that those of lower-cased text stay.
PUNCTUATION = frozenset(("''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--",
                         "...", ";"))  # fmt: skip
BLANK = "\u00a0"  # joins the parts of one token: "1 1/2" is one

# Keep their full stop: always; written with a capital; before a number.
_ALWAYS = """adm al ala apr ariz assn atty aug ave bhd bldg blvd bros calif capt cf cie cmdr co col colo comdr conn
    corp cos cpl ct dak dec dept det dr elec esq est etc ext feb fla fri ft ga gen gov hon inc ind insp intl jan jr jul
    jun kan kans ky lieut lt ltd maj mar md messrs mfg mich minn mlle mme mo mon mont mr mrs ms mt natl neb nev nov oct
    okla penn pfc ph ph.d plc pres prof pty pvt rd rep reps rev rt sen sens sep sept seq sgt spc sq sr st ste supt tel
    tenn thu thurs treas tue tues univ va vs vt wed wis wisc wyo ed.d"""
_CAPITAL = "Ark Del Ill La Mass Miss Ore Pa Tex Wash"
_NUMBERED = "art ca fig figs no nos op pp prop"
_SPLIT = {"cannot": "can not", "gonna": "gon na", "gotta": "got ta", "lemme": "lem me", "wanna": "wan na",
          "gimme": "gim me"}  # fmt: skip
_WHOLE = "c'est 'cause 'til 'em ol' dunkin' somethin' e'er"
# After a single letter with a full stop these begin a sentence, and the stop is none of the letter's.
_STARTERS = """a about according
    after an as at but he her here however if in it last many more now once one other our she
    since so some such that the their then there these they this we what when while yet you"""

_L = r"(?:[^\W\d_\u00b2\u00b3\u00b9\u00bc-\u00be\u2070-\u209f\u2150-\u218f\u2460-\u24ff])"  # a letter
_A = rf"(?:{_L}|\d)"
_Q = "['\u2019]"  # an apostrophe
_VOWEL = "[aeiouyAEIOUY]"


def _any(text):
    """A pattern for any of the words, longer ones first."""
    return "|".join(sorted(map(re.escape, text.split()), key=len, reverse=True))


def _compile():
    """The kinds of token, the first of equally long ones counts: (pattern, length to add, what it becomes or None)."""
    before_not = rf"{_L}+(?=[nN]{_Q}[tT])"
    whole = _any(_WHOLE).replace("'", _Q)
    capitals = _any(_CAPITAL + " " + _CAPITAL.upper())
    starters = _any(_STARTERS.title() + " " + _STARTERS.upper() + " Mr. MR. Ms. MS.") + "|</?[A-Za-z][^<>]*>"
    end, initials = rf"(?!{_A})", rf"{_L}(?:\.{_L})+"
    patterns = [
        (rf"(?i:{'|'.join(_SPLIT)})(?!{_A}|{_Q}{_L})", lambda t: _SPLIT[t.lower()]),
        (r"'[tT](?=(?i:is|was))", None),
        (rf"[cC]'mon|{_Q}n{_Q}|{_Q}n(?=\s|$)", None),
        (before_not, None),
        (rf"[nN]{_Q}[tT]{end}", lambda t: "n't"),
        (rf"{_Q}(?i:s|m|d|ll|re|ve){end}", lambda t: "'" + t[1:]),
        (rf"(?i:{whole}){end}", None),
        (rf"[jJyYdDlL]{_Q}(?={_L})", None),
        (rf"{_Q}\d\ds?(?!{_A}|{_Q}|\")", None),
        (rf"[dolA-HJ-XZn]{_Q}{_L}{{2,}}(?:-{_A}+)*", None),
        (rf"{_L}+{_VOWEL}{_Q}(?![yY]){_VOWEL}{_L}*(?:-{_A}+)*", None),
        (rf"{_A}+(?:(?:[-_]|\\?/){_A}+)*", None),
        (rf"{_L}{_A}*(?:[.!?]{_L}{_A}*)+(?:-{_A}+)*", None),
        (rf"{_L}\.(?!\s+(?:{starters})\s)", None),
        (rf"{initials}\.(?:-(?:{initials}\.?|{_A}+))*", None),
        (rf"(?:(?i:{_any(_ALWAYS)})|{capitals})\.(?:-{_A}+)*", None),
        (rf"(?i:{_any(_NUMBERED)})\.(?=\s*\d)", None),
        (r"[+-]?\d*(?:[.,:]\d+)+|[+-]\d+", None),
        (r"(?:\d{1,4}[ -])?\d{1,4}\\?[/\u2044]\d{1,4}", None),
        (r"(?:\(\d{2,3}\) ?|(?:\+\+?)?(?:\d{2,4}[- ])?\d{2,4}[- ])\d{3,4}[- ]?\d{3,5}", None),
        (r"[A-Z]+(?:&[A-Z]+)+", None),
        (r"[cC]\+\+|[cCfF]#", None),
        (r"#[A-Za-z]+|@[A-Za-z]\w*", None),
        (r"[A-Za-z0-9][^\s\"<>|()\xa0]*@[^\s\"<>|()\xa0]+", None),
        (r"(?i:https?://)[^\s\"<>|(){}]+\.[^\s\"<>|(){}]*[^\s\"<>|(){}.,!?;:-]", None),
        (r"(?:[A-Za-z0-9]{2,}\.)+(?:com|net|org|edu)/[^\s\"<>|(){}]*[^\s\"<>|(){}.,!?;:-]", None),
        (r"www\.(?:[A-Za-z0-9-]+\.)+[a-zA-Z]{2,4}(?:/[^\s\"<>|(){}]*[^\s\"<>|(){}.,!?;:-])?", None),
        (r"</?[A-Za-z!][^<>]*>", None),
        (r"[<>]?[:;=][-o*']?[()DPp\[\]@|dO{\\]" + end, None),
        (r"-(?i:[lr][rsc]b)-", None),
        (r"\^_\^|-_-", None),
        (r"[?!]+|\*+|_+|-{5,}", None),
        (r"--+|[\u0096\u0097\u2013-\u2015]", lambda t: "--"),
        (r"&(?i:amp);", lambda t: "&"),
        (r"&(?i:lt);", lambda t: "<"),
        (r"&(?i:gt);", lambda t: ">"),
        (r"&(?i:quot|apos);", lambda t: "'"),
        (r"&(?i:nbsp);", lambda t: ""),
        (r"&#\d+;", None),
        (r"\.\.\.+|\u2026|\u0085", lambda t: "..."),
        (r"<<|>>", None),
    ]
    # What comes after "do" in "don't" counts towards its length, as in the original.
    return [(re.compile(pattern), 3 if pattern == before_not else 0, made) for pattern, made in patterns]


_SIGNS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-", '"': "''", "\u00a3": "#",
          "\u20ac": "$", "\u0080": "$", "\u00a4": "$", "\u20a0": "$", "\u00a2": "cents", "\u00bc": "1/4",
          "\u00bd": "1/2", "\u00be": "3/4", "\u2153": "1/3", "\u2154": "2/3"}  # fmt: skip
_SIGNS |= dict.fromkeys("\u2018\u201b\u2039\u2019\u203a\u0091\u0092\u201c\u00ab\u0093\u201d\u00bb\u0094", "'")
_KEPT = (range(0x20, 0x7F), range(0xA1, 0xC0), range(0x2016, 0x2150), range(0x2155, 0x215F), range(0x2190, 0x2C00),
         (0xD7, 0xF7, 0x3001, 0x3002, 0x3012, 0x30FB))  # fmt: skip
_INVISIBLE = re.compile("[\u00ad\u058a\u2010\u2011]")
_PATTERNS = _compile()
# Most tokens are found without them: words before a blank or a comma, or before a full stop at the end of a line.
_PLAIN = re.compile(r"[A-Za-z]+(?=[ ,\n])|[A-Za-z]{2,}(?=\. ?\n)|[.,](?=\s)")
_NOT_PLAIN = {*_SPLIT, *_ALWAYS.lower().split(), *_CAPITAL.lower().split(), *_NUMBERED.split()}


def tokenize(captions):
    """Captions in words: list of str -> list of str, in lower case, one space between each word and the next.

    The original reads all of them as one text, so that what the next one begins with can decide on a full stop.
    """
    text = "\n".join(_INVISIBLE.sub("", caption.replace("\n", " ")) for caption in captions) + "\n"
    lines, place = [[]], 0
    while place < len(text):
        if text[place] == "\n":
            lines.append([])
        if text[place].isspace():
            place += 1
            continue
        size, token = _next(text, place)
        place += size
        lines[-1] += token.lower().split(" ")
    return [" ".join(word for word in line if word and word not in PUNCTUATION) for line in lines[:-1]]


def _next(text, place):
    """(length in the text, token) of the longest token that begins at a place; "" for what is dropped."""
    plain = _PLAIN.match(text, place)
    if plain and plain[0].lower() not in _NOT_PLAIN:
        return len(plain[0]), plain[0]
    best, size, token = 0, 1, _sign(text[place])
    for pattern, ahead, made in _PATTERNS:
        found = pattern.match(text, place)
        if found and len(found[0]) + ahead > best:
            best, size = len(found[0]) + ahead, len(found[0])
            token = made(found[0]) if made else _joined(found[0])
    return size, token


def _joined(token):
    return token.replace(" ", BLANK).replace("(", "-lrb-").replace(")", "-rrb-")


def _sign(sign):
    if sign in _SIGNS:
        return _SIGNS[sign]
    kept = unicodedata.category(sign)[0] == "L" or any(ord(sign) in block for block in _KEPT)
    return sign if kept else ""
