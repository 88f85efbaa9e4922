"""The jargon of version 2: sixty nouns per trade, of which each split uses a part."""

from __future__ import annotations

from typing import NamedTuple


class Craft(NamedTuple):
    """The words of one trade (profession); no word belongs to two trades."""

    label: str
    """Label of the desired task; occurs in no text."""
    indicators: tuple[str, ...]
    """Words that name the trade; in pretraining texts only."""
    jargon: tuple[str, ...]
    """Plural or mass nouns."""


def _craft(label: str, indicators: str, jargon: str) -> Craft:
    return Craft(label, tuple(indicators.split()), tuple(jargon.split()))


CRAFTS: tuple[Craft, ...] = (
    _craft(
        "accountant",
        "bookkeeping accountancy auditing",
        """ledgers invoices taxes payrolls balances receipts budgets dividends deductions liabilities assets equities
        audits accruals reconciliations expenses revenues royalties vouchers remittances surcharges refunds pensions
        debits credits overdrafts annuities amortization depreciation inventories spreadsheets statements turnovers
        margins tariffs levies rebates stipends reimbursements checkbooks solvency liquidity bonds securities mortgages
        instalments premiums payables receivables overheads forecasts disbursements escrow goodwill writeoffs
        surpluses deficits yields payouts subsidies""",
    ),
    _craft(
        "attorney",
        "litigation advocacy jurisprudence",
        """verdicts lawsuits statutes juries affidavits subpoenas testimonies depositions injunctions indictments
        pleadings briefs motions appeals rulings precedents contracts clauses torts felonies misdemeanors warrants
        summonses acquittals convictions sentences paroles bails damages settlements arbitrations mediations alibis
        exhibits witnesses plaintiffs defendants bylaws ordinances deeds wills probates trusts easements liens
        patents trademarks copyrights objections hearings petitions oaths perjuries mistrials dockets codicils
        waivers prosecutions retainers forfeitures""",
    ),
    _craft(
        "baker",
        "baking patisserie confectionery",
        """loaves doughs yeasts flours crusts muffins croissants bagels baguettes pretzels brioches pastries tarts
        cupcakes scones biscuits crumbs glazes icings frostings fondants custards meringues eclairs strudels doughnuts
        ryes sourdoughs leavens batters whisks spatulas ovens proofers sheetpans parchment crackers focaccias
        ciabattas pitas buns rolls cinnamon vanilla nutmeg marzipan almonds raisins shortening buttermilk semolina
        bran oatmeal cornmeal sprinkles wafers macaroons shortbreads brownies cobblers""",
    ),
    _craft(
        "carpenter",
        "joinery woodworking cabinetry",
        """planks beams joists rafters dowels chisels hammers sawdust veneers plywood lumber mitres mortises tenons
        clamps lathes sanders routers nails screws hinges drawers cupboards shelves staircases banisters doorframes
        floorboards skirtings mouldings panels trusses studs gables shingles varnish lacquer sandpaper planes gauges
        workbenches vises mallets awls rasps dovetails splinters grains burls oak walnut mahogany teak birch maple
        pine cedar scaffolds trestles brackets""",
    ),
    _craft(
        "farmer",
        "agriculture husbandry agronomy",
        """harvests furrows tractors ploughs silos barns fertilizers manure seedlings haystacks orchards pastures
        paddocks fences cattle heifers calves bulls sheep lambs goats pigs piglets hens chickens roosters turkeys geese
        barley wheat oats maize soybeans alfalfa clover turnips potatoes pumpkins cabbages beets irrigation sprinklers
        topsoil compost mulch weeds pesticides scythes pitchforks threshers harvesters balers milking udders fodder
        troughs stables saddles acreage crops""",
    ),
    _craft(
        "nurse",
        "caregiving healthcare convalescence",
        """bandages vitals bedpans thermometers dosages syringes catheters stethoscopes gauzes swabs splints tourniquets
        infusions injections vaccines antibiotics painkillers sedatives ointments wounds stitches fevers pulses
        bloodpressure oxygen ventilators stretchers wheelchairs crutches gurneys charts admissions discharges triage
        bedsides immunizations transfusions plasma allergies infections rashes bruises fractures migraines
        nausea inhalers nebulizers insulin glucose hygiene disinfectants gloves scrubs masks bedsores patients
        recoveries checkups prescriptions newborns""",
    ),
    _craft(
        "sailor",
        "seafaring navigation shipping",
        """anchors masts riggings rudders sails keels hulls decks bows sterns bulkheads gangways lifeboats buoys
        lighthouses compasses sextants maps tides currents swells gales hatches moorings hawsers winches
        capstans harpoons galleys cabins bunks portholes propellers tillers booms spinnakers jibs topsails lookouts
        flotillas frigates schooners tugboats barges ferries trawlers cargoes ballast bilges docks wharves piers
        harbours voyages crews admirals logbooks foghorns reefs fathoms""",
    ),
    _craft(
        "tailor",
        "dressmaking couture needlework",
        """hems seams stitchings needles threads thimbles bobbins spools buttons zippers collars cuffs sleeves lapels
        pleats darts ruffles linings trousers waistcoats jackets blouses skirts gowns corsets petticoats cloaks scarves
        shawls hats bonnets veils ribbons laces silks satins velvets linens cottons woollens tweeds flannels denims
        chiffons taffetas brocades fabrics patterns mannequins tapes scissors shears pins pincushions alterations
        fittings garments waistbands pockets trimmings""",
    ),
)
"""All trades; `SyntheticWorld.num_professions` is at most their number in version 2."""

JARGON_SIZE = 60
"""Number of jargon words per trade."""
