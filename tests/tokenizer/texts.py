"""Texts in many languages and of many kinds."""

from __future__ import annotations

import unicodedata

# One sentence in each language that Llama 4 supports, with what is special in its writing.
LANGUAGES = {
    "arabic": "مرحبًا بالعالم! كيف حالُكَ اليوم؟ ١٢٣ كتابًا",
    "english": "It's 3:45 p.m. — they'll've GONE, DON'T you think?",
    "french": "L’été dernier, où étiez-vous ? « À Besançon », dit-elle.",
    "german": "Straßenbahnhaltestelle: Übergrößenträger kosten 1.234,56 €.",
    "hindi": "नमस्ते दुनिया! क्या आप ठीक हैं? १२३ किताबें।",
    "indonesian": "Selamat pagi, orang-orang baik; mereka berlari-larian.",
    "italian": "Perché l'università è chiusa? È già mezzanotte, cioè le 24.",
    "portuguese": "Não há pão à venda; a informação não está disponível às 9h.",
    "spanish": "¿Dónde está el niño? ¡Qué pingüino más simpático!",
    "tagalog": "Kumusta ka? Ang mga bata'y naglalaro sa ilalim ng puno.",
    "thai": "สวัสดีชาวโลก วันนี้อากาศดีมาก ๑๒๓",
    "vietnamese": "Xin chào thế giới! Hôm nay trời đẹp quá, phải không?",
}
OTHER_TEXTS = {
    "empty": "",
    "decomposed accents": unicodedata.normalize("NFD", LANGUAGES["vietnamese"]),
    "chinese and japanese": "日本語テスト。中文測試，ひらがな ｶﾀｶﾅ",
    "korean": "안녕하세요 세계",
    "emoji": "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇩🇪🇫🇷 ❤️ 1️⃣",
    "odd spaces": " \u00a0\u2003\u3000\u200b\ufeff x\u0085y\u2028z\v\f",
    "line ends": "a\r\nb\n\n\nc\r\r d  \n  e \n\n x\t\n",
    "trailing spaces": "word    ",
    "numbers": "1234567890 3.14159 0x1F 1e-9 ½ ² ٣ Ⅷ",
    "contractions": "I'M i'm we'Re 'SS ſ's K's it'ſ o'clock",
    "case changes": "HTTPServerError iPhone McDONALD's ǅungla ʰello",
    "python": "def f(x: int) -> str:\n\treturn f'{x!r:>10}'  # ok\n\n\nclass A:\n    pass\n",
    "rust": 'fn main() { let v: Vec<u8> = vec![0; 1 << 20]; println!("{:?}", &v[..]); }\n',
    "html": '<a href="/x?y=1&amp;z=2">t</a><!-- c -->//path/to\r\n///\n',
    "symbols": "!!!???... --- === ***///\n\n/ @@ ## $$ %% ^^ && (( )) __ ``",
    "repeats": "a" * 300 + " " * 300 + "ab" * 150 + "\n" * 100 + "=-" * 99,
    "control characters": "\x00\x01\x7f\x80\x9f",
    "private and unassigned": "\ue000\uf8ff\U000f0000\u0378\U000e0041",
    "special names": "<|eot|><|begin_of_text|> <|image|>x<|patch|><|nothing|>",
}
