"""A sentence in each of Magistral's 24 languages, and characters that are made of several."""

SENTENCES = {
    "en": "The train to the coast leaves at half past nine, doesn't it?",
    "fr": "L'été dernier, nous avons déjeuné près du phare où naît la rivière.",
    "de": "Größere Bäume spenden im Frühling süßen Schatten über dem Fußweg.",
    "el": "Το πρωί πίνω έναν ζεστό καφέ και διαβάζω την εφημερίδα μου.",
    "hi": "आज सुबह बाज़ार में ताज़े फल और सब्ज़ियाँ मिल रही थीं।",
    "id": "Anak-anak bermain layang-layang di lapangan setelah hujan reda.",
    "it": "Perché non andiamo più spesso a cena nella città vecchia?",
    "ja": "昨日の夜、駅前のラーメン屋で友達とゆっくり話しました。",
    "ko": "어제 도서관에서 빌린 책을 다 읽고 나서 산책을 했습니다.",
    "ms": "Kakak saya membeli sayur-sayuran segar di pasar malam itu.",
    "ne": "हाम्रो गाउँमा वर्षा सुरु भएपछि खेतहरू हरिया हुन्छन्।",
    "pl": "Żółte liście wirują nad ścieżką, a dzieci źle śpią po burzy.",
    "pt": "Amanhã não haverá pão fresco, então comeremos maçãs e avelãs.",
    "ro": "În fiecare toamnă, bunica șterge praful și țese un covor în odaie.",
    "ru": "Съешь ещё один пирожок, пока чай не остыл на подоконнике.",
    "sr": "Љубичасто цвеће расте поред пута који води ка старој воденици.",
    "es": "¿Cuándo llegará el señor Muñoz? Mañana, según dijo, ¡qué alegría!",
    "tr": "Işık söndüğünde çocuklar gökyüzündeki yıldızları saymaya başladı.",
    "uk": "Їжак шукає ґудзик під яблунею, а господиня п'є чай із м'ятою.",
    "vi": "Những đứa trẻ thường thả diều trên cánh đồng vào buổi chiều gió mát.",
    "ar": "في الصباح الباكر ذهبتُ إلى السوق واشتريتُ خبزًا طازجًا.",
    "bn": "বৃষ্টির পরে নদীর ধারে হাঁটতে আমার খুব ভালো লাগে।",
    "zh": "昨天下午我们在湖边散步,看见一只白鹭慢慢飞过水面。",
    "fa": "کتاب‌های پدربزرگ را در کتابخانه‌ی کوچکِ خانه می‌خوانم.",
}
# Emoji joined by zero-width joiners, skin tones, flags, keycaps; marks that combine with what
# stands before them; the same letter composed and decomposed; characters outside of the BMP.
COMPOSED = {
    "family": "👩‍👩‍👧‍👦 and 👨🏽‍🚀 and 🏳️‍🌈",
    "flags": "🇫🇷🇯🇵🇧🇷 4️⃣ #️⃣",
    "marks": "Z̸̨͝a̷͘l̶g̵o̴ e\u0301 é ñ n\u0303 ด้วยกัน",
    "astral": "𝔐𝔞𝔤𝔦𝔰𝔱𝔯𝔞𝔩 𠜎𠜱 𐍈",
    "controls": "tab\t newline\r\n zero\x00 nbsp\u00a0 bom\ufeff",
}
TEXTS = SENTENCES | COMPOSED
