# ruff: noqa: RUF001  (each language has signs and letters that look like those of ASCII)
"""Ten sentences for each of some languages, as users write them: no two of a kind, some short, some with ASCII."""

CHINESE = """
请把下面这段话翻译成英文。
今天天气很好，我们一起去公园散步吧。
这个问题的答案在第三章里可以找到。
他昨天买了一本关于历史的书。
请总结这篇文章的主要内容，不超过一百字。
北京是中华人民共和国的首都，人口超过两千万。
如果明天下雨，比赛将推迟到星期六举行。
产品质量很差，送货也慢，我不会再买了。
人工智能正在改变我们的生活和工作方式。
您好，请问去火车站怎么走？
""".strip().splitlines()
TRADITIONAL_CHINESE = """
請把下面這段話翻譯成英文。
今天天氣很好，我們一起去公園散步吧。
這個問題的答案在第三章裡可以找到。
他昨天買了一本關於歷史的書。
請總結這篇文章的主要內容，不超過一百字。
臺北是中華民國的首都，人口約兩百五十萬。
如果明天下雨，比賽將延期到星期六舉行。
產品品質很差，送貨也慢，我不會再買了。
人工智慧正在改變我們的生活和工作方式。
您好，請問去火車站怎麼走？
""".strip().splitlines()
KOREAN = """
다음 문장을 영어로 번역해 주세요.
오늘은 날씨가 좋아서 공원에 산책하러 갔습니다.
이 문제의 답은 세 번째 장에서 찾을 수 있습니다.
그는 어제 역사에 관한 책을 한 권 샀다.
이 글의 주요 내용을 백 자 이내로 요약해 주세요.
서울은 대한민국의 수도이며 인구가 천만 명에 가깝다.
내일 비가 오면 경기는 토요일로 연기됩니다.
제품 품질이 나쁘고 배송도 느려서 다시는 사지 않겠습니다.
인공지능이 우리의 생활과 일하는 방식을 바꾸고 있다.
안녕하세요, 기차역으로 가려면 어떻게 해야 하나요?
""".strip().splitlines()
JAPANESE = """
次の文章を英語に翻訳してください。
今日は天気がいいので、公園へ散歩に行きました。
この問題の答えは第三章にあります。
彼は昨日、歴史に関する本を一冊買った。
この記事の主な内容を百字以内で要約してください。
東京は日本の首都で、人口は約千四百万人です。
明日雨が降れば、試合は土曜日に延期されます。
製品の品質が悪く、配送も遅いので、二度と買いません。
人工知能は私たちの生活と働き方を変えつつある。
すみません、駅へはどう行けばいいですか。
""".strip().splitlines()
RUSSIAN = """
Переведите следующий текст на английский язык.
Сегодня хорошая погода, и мы пошли гулять в парк.
Ответ на этот вопрос можно найти в третьей главе.
Вчера он купил книгу по истории.
Кратко изложите содержание статьи, не более ста слов.
Москва: столица России, её население превышает двенадцать миллионов.
Если завтра будет дождь, игра переносится на субботу.
Качество товара плохое, доставка медленная, больше не куплю.
Искусственный интеллект меняет нашу жизнь и работу.
Здравствуйте, как пройти на вокзал?
""".strip().splitlines()
GERMAN = """
Übersetze den folgenden Text ins Englische.
Heute ist schönes Wetter, wir gehen im Park spazieren.
Die Lösung dieser Aufgabe steht im dritten Kapitel.
Gestern kaufte er ein Buch über Geschichte.
Fasse den Artikel in höchstens hundert Wörtern zusammen.
München liegt an der Isar und hat große Straßen.
Falls es morgen regnet, fällt das Spiel aus und wird verlegt.
Die Qualität ist schlecht und die Lieferung dauert zu lange, für 20 € zu teuer.
Künstliche Intelligenz verändert unser Leben und unsere Arbeit.
Guten Tag, wie komme ich zum Bahnhof? Würden Sie mir helfen?
""".strip().splitlines()
FRENCH = """
Traduisez le texte suivant en anglais, s'il vous plaît.
Aujourd'hui il fait beau, nous sommes allés à la forêt.
La réponse à cette question se trouve au troisième chapitre.
Hier, il a acheté un livre d'histoire très intéressant.
Résumez l'article en cent mots au maximum, où c'est possible.
Paris est la capitale de la France, située sur la Seine où coule l'été.
S'il pleut demain, le match sera reporté à samedi prochain, déjà complet.
La qualité est mauvaise et la livraison trop lente, ça coûte 20 €.
L'intelligence artificielle change notre façon de travailler à présent.
Bonjour, où est la gare ? Pouvez-vous m'aider, s'il vous plaît ?
""".strip().splitlines()
POLISH = """
Przetłumacz poniższy tekst na język angielski.
Dzisiaj jest ładna pogoda, poszliśmy na spacer do parku.
Odpowiedź na to pytanie można znaleźć w trzecim rozdziale.
Wczoraj kupił książkę o historii, którą czyta każdego dnia.
Streść artykuł w najwyżej stu słowach, proszę o zwięzłość.
Kraków leży nad Wisłą i jest jednym z najstarszych miast.
Jeśli jutro będzie padać, mecz zostanie przełożony na sobotę.
Jakość jest zła, a dostawa trwa zbyt długo, nie kupię więcej.
Sztuczna inteligencja zmienia nasze życie i pracę, także tę biurową.
Dzień dobry, jak dojść do dworca? Czy może mi pan pomóc?
""".strip().splitlines()
CZECH = """
Přeložte následující text do angličtiny.
Dnes je hezké počasí, a tak jsme šli na procházku do parku.
Odpověď na tuto otázku najdete ve třetí kapitole.
Včera si koupil knihu o dějinách, kterou čte každý den.
Shrňte článek nejvýše do sta slov, prosím stručně.
Praha leží na Vltavě a je hlavním městem České republiky.
Bude-li zítra pršet, zápas se přesune na sobotu večer.
Kvalita je špatná a dodání trvá příliš dlouho, už nekoupím.
Umělá inteligence mění náš život i způsob práce.
Dobrý den, jak se dostanu na nádraží? Můžete mi pomoci?
""".strip().splitlines()
HUNGARIAN = """
Fordítsa le a következő szöveget angolra.
Ma szép idő van, ezért elmentünk sétálni a parkba.
A kérdésre a válasz a harmadik fejezetben található.
Tegnap vett egy könyvet a történelemről, és már olvassa is.
Foglalja össze a cikket legfeljebb száz szóban, tömören.
Budapest a Duna két partján fekszik, lakossága közel kétmillió.
Ha holnap esik az eső, a mérkőzést szombatra halasztják.
A minőség gyenge, a szállítás lassú, többet nem veszek tőlük.
A mesterséges intelligencia megváltoztatja az életünket és a munkánkat.
Jó napot, hogy jutok el a pályaudvarra? Tudna segíteni?
""".strip().splitlines()
# Too few letters, or a code page that is not told from others.
UNCERTAIN = [
    ("Μεταφράστε το παρακάτω κείμενο στα αγγλικά", "cp1253"),
    ("תרגם את הטקסט הבא לאנגלית", "cp1255"),
    ("ترجم النص التالي إلى اللغة الإنجليزية", "cp1256"),
    ("แปลข้อความต่อไปนี้เป็นภาษาอังกฤษ", "cp874"),
    ("Aşağıdaki metni İngilizceye çevirin, lütfen", "cp1254"),
    ("Išverskite šį tekstą į anglų kalbą", "cp1257"),
    ("ПЕРЕВЕДИТЕ ЭТОТ ТЕКСТ", "koi8_r"),
    ("ПЕРЕВЕДИТЕ ЭТОТ ТЕКСТ", "cp866"),
    ("请", "gbk"),
    ("한국", "euc_kr"),
    ("東京", "euc_jp"),
]
