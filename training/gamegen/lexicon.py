"""Words of the wide world for the training of the text encoder; the captions of the clips never use most of them.

LABELLED groups words and short phrases by the attribute value that they speak of; neighbours in meaning that speak of
no value at all are in NEUTRAL. The other lists carry no labels: `train_text.py` builds phrases from them, lets the
teacher's sentence space say where they belong, and keeps what it is sure about.
"""


def split(text: str) -> list[str]:
    """Phrases between commas."""
    return [" ".join(p.split()) for p in text.split(",") if p.strip()]


LABELLED = {name: {value: split(text) for value, text in values.items()} for name, values in {
    "biome": {
        "meadow": """prairie, pasture, grassland, field, fields, lawn, farmland, countryside, steppe, savanna,
            heath, plain, plains, pastures, green hills, clover, daisies, dandelions, tulips, poppies, sunflowers,
            orchard, village green, hay, wheat fields, farm, cottage garden, park, vale, dale, glen, highland
            pasture, shepherd, sheep and cows, hobbit land, spring flowers, blossoming fields, tall grass, ireland,
            rural england, bees and butterflies, golf course, ranch, vineyard, flowery slopes, grazing land, lush
            turf, barley, corn field, the great plains, kansas, bluebells, wild herbs""",
        "desert": """dune, dunes, sands, arabia, oasis, cactus, cacti, mesa, badlands, canyon, gobi, sahara, nevada,
            arizona, egypt, pyramids, camels, caravan, arid plain, drylands, barren land, wasteland, parched earth,
            dry riverbed, scrubland, salt flats, outback, scorched sand, mirage, sphinx, bedouin tents, wild west,
            tatooine, arrakis, sun baked earth, drought, sandy wastes, gulch, thirsty ground, dust bowl, scorpions,
            tumbleweed, adobe ruins, kalahari, beach of sand, sandy plateau""",
        "snow": """arctic, antarctica, glacier, glaciers, tundra, permafrost, iceberg, polar land, north pole, alps,
            himalaya, siberia, greenland, iceland in winter, alaska, frost, frozen lake, frozen river, ice cave,
            snowfield, ski slope, snowdrifts, igloo, eskimo, penguins, polar bears, reindeer, frosty peaks, icy
            plain, winter, wintry land, white wilderness, powder snow, icicles, hoth, everest, frozen wasteland,
            frozen hills, frostbitten steppe, subzero wilds, lapland, frozen moorland, avalanche, mammoth, snow
            country, narnia in winter, sled dogs""",
        "forest": """woods, woodland, grove, thicket, jungle, rainforest, taiga, timber, redwoods, oaks, birches,
            pines, firs, spruces, maples, beech trees, bamboo, undergrowth, ferns, moss, canopy, backwoods,
            wilderness of trees, tree trunks, leafy paths, glade, clearing among trees, black forest, amazon,
            mangrove, copse, conifers, evergreen, forest floor, treetops, willow, vines, deer and owls, mossy logs,
            lumber camp, elves' wood, robin hood, ents, sequoia, foliage, shrubs and trees, wooded valley, bushes,
            autumn leaves""",
        "volcanic": """volcano, lava, magma, eruption, crater, caldera, ash, cinders, obsidian, basalt, brimstone,
            sulfur, molten rock, hell, inferno, underworld, hades, mordor, mount doom, vesuvius, etna, hawaii lava,
            pompeii, lava flow, lava lake, fire mountain, geyser, scorched rock, charred land, burnt stone, embers
            and rock, smoking mountain, pyroclastic cloud, vulcan, molten river, glowing fissures, pumice,
            hellscape, demon realm, black stone, tephra, boiling earth, lake of fire, erupting mountain, dragon's
            lair""",
        "alien": """alien, extraterrestrial, outer space, exoplanet, planet, mars, moon of jupiter, saturn, galaxy,
            otherworldly land, unearthly plants, weird fungi, giant toadstools, mushrooms, crystals, gems, amethyst,
            quartz, violet land, purple plants, pandora, avatar world, ufo, science fiction, distant star, cosmos,
            nebula, another dimension, surreal place, dreamland, psychedelic land, bioluminescent plants, glowing
            fungi, mauve hills, foreign star system, aliens, strange flora, teal sea, lilac meadow of crystals,
            spores, martian plain, unknown world, crystal caves, wonderland, xenomorph nest""",
    },
    "lighting": {
        "day": """noon, midday, daytime, daylight, afternoon, sunshine, sunny, sunlit, high sun, blazing sun, bright
            light, broad daylight, sun overhead, blue sky, bright, day, lunchtime, sunbeams, radiant light, full
            sun, brightly lit, glaring sun, high noon, summer day, well lit, siesta""",
        "sunset": """sunset, dusk, twilight, evening, sundown, nightfall, gloaming, golden hour, setting sun, orange
            sky, low sun, eventide, late sun, last light, end of the day, red sky, amber light, vesper, sun sinking,
            evening glow, fading light, crepuscular, sun dips below the horizon, supper time, burning evening sky,
            day is over""",
        "night": """night, midnight, darkness, dark, moon, moonlight, moonlit, stars, starlight, starry, nocturnal,
            nighttime, black sky, full moon, constellations, milky way, starless sky, pitch dark, lunar, witching
            hour, lanterns, owls, after dark, crescent moon, sleepless hours, gloom of night, moonshine, shadowy
            night, northern stars, galaxy overhead, dead of night""",
        "dawn": """dawn, sunrise, daybreak, morning, early morning, sunup, first light, rising sun, pink sky,
            rooster crows, dew, breakfast, aurora of morning, cockcrow, break of day, new day, waking birds, early,
            morning glow, sun comes over the horizon, young day, pale sky, pastel sky, before the day, a.m.""",
    },
    "weather": {
        "clear": """clear, cloudless, fair, fine weather, calm, dry, unclouded, spotless sky, clear sky, blue
            heavens, sunny spell, good visibility, still air, windless, no clouds, bright sky, pleasant weather,
            perfect weather, crystal clear air, mild and dry, clean air, transparent air, not a drop of rain, serene
            sky""",
        "rain": """rain, rainy, downpour, shower, drizzle, deluge, monsoon, thunderstorm, thunder, lightning,
            cloudburst, wet, puddles, raindrops, umbrella, pouring, soaked, flood, tropical storm, drenched,
            tempest, rainfall, dripping, raining cats and dogs, torrential rain, sprinkle, stormy rain, water from
            the sky""",
        "snow": """snowfall, snowing, snowflakes, blizzard, snowstorm, flurries, flakes, sleet, hail, whiteout,
            drifting flakes, fresh snow falling, falling flakes, winter storm, ice storm, snowy, white flakes,
            flakes in the wind, snow shower, frosty squall, snow comes down, nor'easter""",
        "fog": """fog, mist, haze, foggy, misty, hazy, smog, vapor, murk, brume, low visibility, fog bank, steam,
            cloudy haze, obscured view, blurred distance, gray veil, smoky air, murky, shrouded in mist, soupy air,
            cannot see far, veiled hills, dim haze, mist covers the land""",
    },
    "effects": {
        "none": """no effects, nothing special, no special effects, ordinary, no fire, no magic, effect free,
            without effects, undisturbed, nothing happens, normal air, only the landscape, no spell and no flame""",
        "fire": """fire, flames, burning, blaze, wildfire, embers, sparks, inferno, bonfire, ablaze, burn, in
            flames, ignited, torches, flaming ground, campfires, arson, scorching flames, ground ablaze, combustion,
            on fire, pyre, glowing coals, burning grass, heat and sparks, flare, forest fire""",
        "sandstorm": """sandstorm, dust storm, blowing sand, haboob, dust devil, sand clouds, dust, gritty wind,
            grit, whirling sand, simoom, sirocco, dusty gale, dust clouds, sand whirl, stinging sand, flying grains,
            dusty, wind full of sand, sand blast, gusts of dust, whirlwind of sand""",
        "magic": """magic, sorcery, spell, spells, enchantment, witchcraft, aurora, northern lights, fairy dust,
            sparkles, arcane, mystic, glitter, incantation, charms, runes, pixies, fairies, glowing orbs, will o'
            the wisp, supernatural glow, enchanted, magical, wonder lights, sorcerous energy, mana, ethereal lights,
            hex, ritual, shimmering particles, hocus pocus, polar lights""",
    },
    "character": {
        "robot": """robot, android, machine, cyborg, droid, automaton, mech, bot, terminator, golem of steel, metal
            man, humanoid machine, artificial being, mechanical being, transformer, c-3po, iron giant, clockwork
            man, drone, steel humanoid, ai, robocop, circuits and gears, electronic man, synthetic human,
            exoskeleton, mecha""",
        "knight": """knight, warrior, paladin, swordsman, soldier, crusader, templar, gladiator, samurai, fighter,
            cavalier, champion, guardsman, lancelot, king arthur, man at arms, armored hero, viking, spartan,
            squire, swordfighter, legionary, chain mail, plate armor, shield and sword, helmet, medieval soldier,
            barbarian, mercenary, duelist, roman soldier""",
        "rider": """rider, horseman, cowboy, horse, jockey, equestrian, cavalry, mounted, horseback, on a horse,
            stallion, mare, pony, in the saddle, galloping, hussar, cossack, vaquero, gaucho, nomad on horseback,
            mounted scout, steed, ranch hand, rodeo, cowgirl, mustang, dragoon, pony express, riding, horsewoman,
            mounted archer""",
        "wizard": """wizard, sorcerer, mage, warlock, witch, magician, enchanter, conjurer, necromancer, merlin,
            gandalf, dumbledore, druid, shaman, sorceress, spell caster, illusionist, occultist, alchemist, magus,
            thaumaturge, man with a wand, long bearded mage, staff and robe, harry potter, pointed hat, spellbook,
            seer, old sage""",
    },
    "color": {
        "red": """red, crimson, scarlet, ruby, cherry, vermilion, blood red, maroon, burgundy, rose red, carmine,
            cardinal, brick red, wine red, tomato red, reddish, rust red""",
        "blue": """blue, azure, navy, sapphire, cobalt, indigo, cerulean, sky blue, ultramarine, turquoise blue,
            ocean blue, royal blue, bluish, cyan, lapis, denim""",
        "green": """green, emerald, jade, olive, lime, forest green, mint, moss green, grass green, viridian, leaf
            green, sea green, greenish, chartreuse, pea green, khaki green""",
        "gold": """gold, golden, yellow, gilded, amber, brass, lemon, mustard, honey colored, blond, saffron, canary
            yellow, sunny yellow, gilt, yellowish, ochre, topaz""",
    },
    "perspective": {
        "third": """third person, from behind, over the shoulder, chase camera, follow camera, external camera,
            third person view, tracking shot, behind the hero, back of the hero, camera trails the hero, seen from
            outside, whole body in view, distant camera, we watch the hero, following behind, spectator view, tps,
            tomb raider camera, bystander view""",
        "first": """first person, pov, point of view, my own eyes, through his eyes, own perspective, ego view, eye
            level, subjective camera, as if i were there, what i see, from inside the helmet, first person shooter,
            fps, head cam, immersive view, i look around, through her eyes, body cam, cockpit view, my hands in
            front of me, doom style camera, vr headset, you are the hero""",
    },
}.items()}

NEUTRAL = split("""a game, a world, an adventure, a journey, a walk, a beautiful view, large, open, a video, play,
    explore, the hero, the player, a character, a person, someone, a traveler, far away, somewhere, a place, a land,
    the horizon, a path, a road, a bridge, ruins, a tower, a castle, a village, a house, walking, running, jumping,
    standing still, turns left, turns right, epic, realistic, detailed, cinematic, high quality, beautiful,
    peaceful, quiet, mysterious, huge, small, wide, old, new, music, people, animals, a bird, stones, water, a lake,
    a river, hello, test, please, good, nice, something, anything, a quest, treasure, exploring alone, a long way,
    lonely, a hike, a dream""")

LAND_ADJECTIVES = split("""frozen, icy, frosty, snowy, cold, wintry, polar, white, sandy, dry, arid, barren,
    parched, hot, dusty, scorched, burnt, molten, smoking, charred, black, fiery, glowing, volcanic, green, grassy,
    lush, flowery, fertile, gentle, leafy, wooded, dense, shady, mossy, tangled, strange, alien, purple, weird,
    crystal, unearthly, luminous, violet, ancient, endless, lonely, rocky, hilly, flat, wild, silent, forgotten,
    bleak, desolate, remote, windy, swampy, stony""")
LAND_NOUNS = split("""moor, plain, valley, hills, mountains, land, wilderness, field, meadow, prairie, forest,
    woods, grove, jungle, desert, dunes, wasteland, canyon, plateau, steppe, tundra, glacier, peak, ridge, slope,
    cliff, crater, volcano, island, coast, shore, beach, marsh, swamp, bog, lake, river, gorge, ravine, cave,
    garden, orchard, farm, park, planet, moon, world, realm, kingdom, region, badlands, highlands, lowlands, heath,
    fjord, bay, cape, basin, oasis, thicket""")
SKY_ADJECTIVES = split("""dark, black, starry, starless, moonlit, bright, blue, sunny, orange, red, golden, pink,
    pale, rosy, early, late, dim, radiant, grey, misty, cloudy, clear, stormy, wet, rainy, snowy, thundering, hazy,
    calm, dry, murky, blazing, gloomy, silver, cold, warm, burning, gritty, dusty, magical, enchanted, sparkling""")
SKY_NOUNS = split("""sky, night, morning, evening, day, noon, hour, light, sun, moon, stars, clouds, air, wind,
    storm, horizon, dusk, dawn, gale, breeze, heavens, weather, afternoon, midnight, twilight, sunrise, sunset,
    shower, mist""")
FIGURES = split("""hero, traveler, explorer, adventurer, hunter, thief, monk, priest, pirate, ninja, archer, king,
    queen, prince, princess, soldier, guard, captain, ranger, scout, pilgrim, nomad, shepherd, farmer, sailor,
    pilot, astronaut, robot, cyborg, machine, statue, giant, dwarf, elf, orc, goblin, demon, angel, ghost, skeleton,
    vampire, witch, wizard, druid, shaman, alchemist, knight, squire, viking, samurai, cowboy, rider, jockey, horse,
    wolf, bear, dragon, dog, cat, blacksmith, bard, healer, assassin, mechanic, scientist, detective, bandit,
    outlaw, child, old man, woman, girl, boy""")
FIGURE_ADJECTIVES = split("""old, young, brave, lonely, tired, tall, small, strong, wise, mysterious, armored,
    mounted, hooded, bearded, metal, mechanical, magical, wandering, masked, noble, royal, golden, silver, black,
    white, brown, grey, purple, orange, pink, ragged, elegant, fierce, gentle, heroic, ancient, steel, wooden,
    robed, cloaked""")
CLOTHES = split("""cape, cloak, robe, armor, tunic, coat, jacket, scarf, suit, dress, plate, shirt, vest, outfit,
    silk, uniform, hood, garment, clothes, poncho, mantle, leather, wool, linen, velvet, cloth, helmet, gown""")
VERBS = split("""walks, runs, wanders, travels, marches, strolls, treks, rides, climbs, hikes, stands, waits, jumps,
    leaps, gallops, sneaks, explores, flees, roams, moves, returns, crosses, searches, stops, rests, dances,
    charges, trots""")
LINKS = split("""in, through, across, over, near, beyond, beneath, under, above, along, past, toward, into, at,
    around, between, behind, beside, with, without, inside""")
