"""Do p-values and standard errors hold what they promise?"""
