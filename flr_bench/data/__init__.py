"""From raw source to prepared examples. Knows no model.

Every module says on its first line what it is for.  Where to look:

==========================================  ===============================================================
kinds of files and data sets                ``sources`` ``amazon`` ``published`` ``published_reading``
                                            ``published_rules`` ``layout``
reading files                               ``opening`` ``sniffing`` ``delimited`` ``table_json``
                                            ``json_lines`` ``parquet`` ``columns`` ``assembly`` ``coded``
                                            ``hygiene`` ``watching``
what is wrong with them                     ``checking`` ``scanning`` ``scanner`` ``scanning_delimited``
                                            ``scanning_json`` ``field_values`` ``problems``
from interactions to examples               ``recipes`` ``filtering`` ``splitting`` ``given`` ``sorting``
                                            ``instants`` ``conditions``
prepared data                               ``prepared`` ``derived`` ``storage`` ``statistics`` ``leakage``
data sets from elsewhere                    ``imports`` ``downloads`` ``fetching`` ``archives`` ``exporting``
==========================================  ===============================================================
"""
