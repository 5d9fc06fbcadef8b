"""Suites, plans, cells, their execution and their store.

Every module says on its first line what it is for.  Where to look:

==========================================  ===============================================================
what a suite file says                      ``suite`` ``suite_source`` ``grids`` ``conditions`` ``listing``
                                            ``suite_diff``
from a suite to cells                       ``planning`` ``entries`` ``planned_data`` ``cell_builder`` ``plan``
                                            ``cell`` ``convergence``
what a plan is shown as, and will take      ``plan_view`` ``tree`` ``states`` ``outlook`` ``costs`` ``calibrate``
one invocation                              ``session`` ``execute`` ``schedule`` ``sharing`` ``pieces``
                                            ``progress``
where jobs run                              ``executors`` ``pool`` ``crew`` ``limits`` ``dask_executor``
                                            ``remote`` ``parcel``
one cell                                    ``work`` ``jobs`` ``events`` ``validation`` ``measuring``
                                            ``telemetry`` ``energy`` ``traces`` ``hardware`` ``provenance``
the store                                   ``store`` ``cellfiles`` ``index`` ``claims`` ``upkeep`` ``moving``
                                            ``pretty``
cells of earlier, and how they came about   ``recorded`` ``recorded_data`` ``explaining`` ``differences``
                                            ``reproduce`` ``comparison``
tuning                                      ``tuning`` ``studies`` ``spaces`` ``pruning`` ``tuned``
                                            ``tuned_writing``
other questions                             ``inspection`` ``sequence`` ``external`` ``ranking_file``
                                            ``describe``
==========================================  ===============================================================
"""
