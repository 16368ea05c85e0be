"""The word lists of the synthetic corpora: everyday English words and their German counterparts.

A noun is `english plural gender german plural`; nouns of the weak declension (der Kunde, dem Kunden) are left out.
A verb is `english third-person past german-infinitive third-person participle`, a separable prefix before `|`, an `_`
for a blank, and a final `sein` where the perfect is formed with it. An adjective is `english german`; only those whose
stem never changes. No English form has two German counterparts inside one list.
"""

PERSONS = """
teacher teachers m Lehrer Lehrer; doctor doctors m Arzt Ärzte; baker bakers m Bäcker Bäcker
driver drivers m Fahrer Fahrer; farmer farmers m Landwirt Landwirte; painter painters m Maler Maler
engineer engineers m Ingenieur Ingenieure; singer singers m Sänger Sänger; author authors m Autor Autoren
butcher butchers m Metzger Metzger; cook cooks m Koch Köche; mechanic mechanics m Mechaniker Mechaniker
carpenter carpenters m Tischler Tischler; guest guests m Gast Gäste; friend friends m Freund Freunde
uncle uncles m Onkel Onkel; brother brothers m Bruder Brüder; father fathers m Vater Väter; son sons m Sohn Söhne
coach coaches m Trainer Trainer; visitor visitors m Besucher Besucher; mayor mayors m Bürgermeister Bürgermeister
tailor tailors m Schneider Schneider; nurse nurses f Krankenschwester Krankenschwestern; aunt aunts f Tante Tanten
sister sisters f Schwester Schwestern; daughter daughters f Tochter Töchter; mother mothers f Mutter Mütter
actress actresses f Schauspielerin Schauspielerinnen; waitress waitresses f Kellnerin Kellnerinnen
queen queens f Königin Königinnen; dancer dancers f Tänzerin Tänzerinnen
librarian librarians f Bibliothekarin Bibliothekarinnen; secretary secretaries f Sekretärin Sekretärinnen
scientist scientists f Forscherin Forscherinnen; lawyer lawyers f Anwältin Anwältinnen
dentist dentists f Zahnärztin Zahnärztinnen; architect architects f Architektin Architektinnen
student students f Studentin Studentinnen; colleague colleagues f Kollegin Kolleginnen
neighbour neighbours f Nachbarin Nachbarinnen; customer customers f Kundin Kundinnen; child children n Kind Kinder
baby babies n Baby Babys
"""

THINGS = """
table tables m Tisch Tische; chair chairs m Stuhl Stühle; cupboard cupboards m Schrank Schränke
carpet carpets m Teppich Teppiche; key keys m Schlüssel Schlüssel; letter letters m Brief Briefe; hat hats m Hut Hüte
coat coats m Mantel Mäntel; suitcase suitcases m Koffer Koffer; umbrella umbrellas m Regenschirm Regenschirme
computer computers m Computer Computer; basket baskets m Korb Körbe; mirror mirrors m Spiegel Spiegel
plate plates m Teller Teller; ball balls m Ball Bälle; pencil pencils m Bleistift Bleistifte; ring rings m Ring Ringe
stone stones m Stein Steine; apple apples m Apfel Äpfel; hammer hammers m Hammer Hämmer; shoe shoes m Schuh Schuhe
glove gloves m Handschuh Handschuhe; desk desks m Schreibtisch Schreibtische; contract contracts m Vertrag Verträge
report reports m Bericht Berichte; pot pots m Topf Töpfe; dog dogs m Hund Hunde; bird birds m Vogel Vögel
lamp lamps f Lampe Lampen; bottle bottles f Flasche Flaschen; cup cups f Tasse Tassen; bag bags f Tasche Taschen
clock clocks f Uhr Uhren; newspaper newspapers f Zeitung Zeitungen; door doors f Tür Türen; fork forks f Gabel Gabeln
jacket jackets f Jacke Jacken; guitar guitars f Gitarre Gitarren; violin violins f Geige Geigen
candle candles f Kerze Kerzen; box boxes f Kiste Kisten; pan pans f Pfanne Pfannen; map maps f Landkarte Landkarten
camera cameras f Kamera Kameras; rose roses f Rose Rosen; flower flowers f Blume Blumen
machine machines f Maschine Maschinen; bell bells f Glocke Glocken; lemon lemons f Zitrone Zitronen
tomato tomatoes f Tomate Tomaten; potato potatoes f Kartoffel Kartoffeln; cap caps f Mütze Mützen
coin coins f Münze Münzen; stamp stamps f Briefmarke Briefmarken; cat cats f Katze Katzen; cow cows f Kuh Kühe
goat goats f Ziege Ziegen; duck ducks f Ente Enten; book books n Buch Bücher; bed beds n Bett Betten
picture pictures n Bild Bilder; knife knives n Messer Messer; glass glasses n Glas Gläser; car cars n Auto Autos
bicycle bicycles n Fahrrad Fahrräder; dress dresses n Kleid Kleider; shirt shirts n Hemd Hemden; egg eggs n Ei Eier
window windows n Fenster Fenster; piano pianos n Klavier Klaviere; radio radios n Radio Radios
boat boats n Boot Boote; shelf shelves n Regal Regale; sofa sofas n Sofa Sofas; pillow pillows n Kissen Kissen
ticket tickets n Ticket Tickets; telephone telephones n Telefon Telefone; document documents n Dokument Dokumente
wheel wheels n Rad Räder; towel towels n Handtuch Handtücher; photo photos n Foto Fotos
tool tools n Werkzeug Werkzeuge; gift gifts n Geschenk Geschenke; poem poems n Gedicht Gedichte
horse horses n Pferd Pferde
"""

PLACES = """
kitchen kitchens f Küche Küchen; garden gardens m Garten Gärten; school schools f Schule Schulen
church churches f Kirche Kirchen; library libraries f Bibliothek Bibliotheken; museum museums n Museum Museen
hotel hotels n Hotel Hotels; office offices n Büro Büros; house houses n Haus Häuser
hospital hospitals n Krankenhaus Krankenhäuser; theatre theatres n Theater Theater; cinema cinemas n Kino Kinos
factory factories f Fabrik Fabriken; bakery bakeries f Bäckerei Bäckereien; park parks m Park Parks
forest forests m Wald Wälder; village villages n Dorf Dörfer; castle castles n Schloss Schlösser
workshop workshops f Werkstatt Werkstätten; garage garages f Garage Garagen; tower towers m Turm Türme
hall halls f Halle Hallen; bedroom bedrooms n Schlafzimmer Schlafzimmer; shop shops m Laden Läden
harbour harbours m Hafen Häfen; zoo zoos m Zoo Zoos; station stations m Bahnhof Bahnhöfe
airport airports m Flughafen Flughäfen; university universities f Universität Universitäten
"""

THING_ADJECTIVES = """
old alt; new neu; red rot; blue blau; green grün; black schwarz; white weiß; yellow gelb; brown braun; small klein
big groß; heavy schwer; cheap billig; beautiful schön; ugly hässlich; round rund; long lang; short kurz
strong stark; modern modern; rare selten; precious wertvoll; empty leer; strange seltsam; famous berühmt
dirty schmutzig; cold kalt; soft weich; narrow schmal; good gut
"""

PERSON_ADJECTIVES = """
old alt; young jung; friendly freundlich; honest ehrlich; rich reich; poor arm; brave mutig; clever klug
polite höflich; famous berühmt; kind nett; funny lustig; curious neugierig; quiet ruhig; proud stolz; happy glücklich
sad traurig; angry wütend; tired müde; ill krank; healthy gesund; strong stark; new neu; hungry hungrig
"""

TRADE = """
buy buys bought kaufen kauft gekauft; sell sells sold verkaufen verkauft verkauft
order orders ordered bestellen bestellt bestellt
"""

TRANSITIVE = """
find finds found finden findet gefunden; lose loses lost verlieren verliert verloren
repair repairs repaired reparieren repariert repariert; clean cleans cleaned putzen putzt geputzt
need needs needed brauchen braucht gebraucht; see sees saw sehen sieht gesehen
carry carries carried tragen trägt getragen; hide hides hid verstecken versteckt versteckt
use uses used benutzen benutzt benutzt; examine examines examined untersuchen untersucht untersucht
forget forgets forgot vergessen vergisst vergessen; collect collects collected sammeln sammelt gesammelt
check checks checked prüfen prüft geprüft; draw draws drew zeichnen zeichnet gezeichnet
paint paints painted bemalen bemalt bemalt; deliver delivers delivered liefern liefert geliefert
move moves moved bewegen bewegt bewegt; pick_up picks_up picked_up ab|holen holt abgeholt
throw_away throws_away threw_away weg|werfen wirft weggeworfen
return returns returned zurück|geben gibt zurückgegeben; borrow borrows borrowed aus|leihen leiht ausgeliehen
take_along takes_along took_along mit|nehmen nimmt mitgenommen; offer offers offered an|bieten bietet angeboten
"""

PERSONAL = """
visit visits visited besuchen besucht besucht; meet meets met treffen trifft getroffen
warn warns warned warnen warnt gewarnt; ask asks asked fragen fragt gefragt; hear hears heard hören hört gehört
pay pays paid bezahlen bezahlt bezahlt; invite invites invited ein|laden lädt eingeladen
call calls called an|rufen ruft angerufen
"""

DATIVE = """
help helps helped helfen hilft geholfen; thank thanks thanked danken dankt gedankt
answer answers answered antworten antwortet geantwortet; trust trusts trusted vertrauen vertraut vertraut
congratulate congratulates congratulated gratulieren gratuliert gratuliert
"""

DITRANSITIVE = """
give gives gave geben gibt gegeben; show shows showed zeigen zeigt gezeigt; send sends sent schicken schickt geschickt
lend lends lent leihen leiht geliehen; bring brings brought bringen bringt gebracht
promise promises promised versprechen verspricht versprochen; hand hands handed reichen reicht gereicht
"""

MOTION = """
drive drives drove fahren fährt gefahren sein; travel travels travelled reisen reist gereist sein
walk walks walked laufen läuft gelaufen sein; fly flies flew fliegen fliegt geflogen sein
go goes went gehen geht gegangen sein; run runs ran rennen rennt gerannt sein
come comes came kommen kommt gekommen sein; go_back goes_back went_back zurück|kehren kehrt zurückgekehrt sein
"""

INTRANSITIVE = """
sleep sleeps slept schlafen schläft geschlafen; work works worked arbeiten arbeitet gearbeitet
sing sings sang singen singt gesungen; dance dances danced tanzen tanzt getanzt
wait waits waited warten wartet gewartet; learn learns learned lernen lernt gelernt
stay stays stayed bleiben bleibt geblieben sein; swim swims swam schwimmen schwimmt geschwommen sein
fall_asleep falls_asleep fell_asleep ein|schlafen schläft eingeschlafen sein
"""

SAYING = """
say says said sagen sagt gesagt; know knows knew wissen weiß gewusst
write writes wrote schreiben schreibt geschrieben; explain explains explained erklären erklärt erklärt
"""
